// Between the dispatch table (sm90_attention_dispatch.cu) and the kernels' translation units, which
// instantiate it.
#pragma once

#include <cuda_runtime.h>

#include "prefill/sm90_attention_config.h"

namespace wlib::prefill {

template <int kHeadDim, bool kHalfScores, bool kTokenRows>
cudaError_t launch_attention(const AttentionKernelParams& p, cudaStream_t stream);

}  // namespace wlib::prefill
