// Between the dispatch table (sm90_gemm.cu) and the kernels' translation units.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <string>

#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

// Null for a device that runs code for one of `archs` (compute capability times 10), else the
// reason for which there is no kernel.
inline const char* refuse_device(int device, std::initializer_list<int> archs = {90}) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const auto text_of = [](int arch) {
    return std::to_string(arch / 10) + "." + std::to_string(arch % 10);
  };
  thread_local std::string text;
  text = "no kernel for compute capability " + text_of(major * 10 + minor) + " (rows:";
  for (const int arch : archs) {
    if (arch == major * 10 + minor) return nullptr;
    text += (arch == *archs.begin() ? " " : ", ") + text_of(arch);
  }
  text += ")";
  return text.c_str();
}

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
