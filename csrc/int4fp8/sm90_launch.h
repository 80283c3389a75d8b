// Between the dispatch table (sm90_gemm.cu) and the kernels' translation units.
#pragma once

#include <cuda_runtime.h>

#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

// Token tiles 8, 16, 32 and 64; any number of tokens, in blocks of kTokens.
template <int kTokens>
cudaError_t launch_decode(const GemmParams& p, cudaStream_t stream);
template <>
cudaError_t launch_decode<8>(const GemmParams& p, cudaStream_t stream);
template <>
cudaError_t launch_decode<16>(const GemmParams& p, cudaStream_t stream);
template <>
cudaError_t launch_decode<32>(const GemmParams& p, cudaStream_t stream);
template <>
cudaError_t launch_decode<64>(const GemmParams& p, cudaStream_t stream);

// Tiles of kRows rows x 128 tokens, 128 or 256; zero points need x_sums.
template <int kRows>
cudaError_t launch_cooperative(const GemmParams& p, int sms, cudaStream_t stream);
template <>
cudaError_t launch_cooperative<128>(const GemmParams& p, int sms, cudaStream_t stream);
template <>
cudaError_t launch_cooperative<256>(const GemmParams& p, int sms, cudaStream_t stream);

}  // namespace wlib::int4fp8
