// Between the dispatch table (sm90_attention_dispatch.cu) and the kernel's translation units.
#pragma once

#include <cuda_runtime.h>

#include "prefill/sm90_attention_config.h"

namespace wlib::prefill {

template <int kHeadDim>
cudaError_t launch_attention(const AttentionKernelParams& p, cudaStream_t stream);
template <>
cudaError_t launch_attention<64>(const AttentionKernelParams& p, cudaStream_t stream);
template <>
cudaError_t launch_attention<128>(const AttentionKernelParams& p, cudaStream_t stream);
template <>
cudaError_t launch_attention<256>(const AttentionKernelParams& p, cudaStream_t stream);

}  // namespace wlib::prefill
