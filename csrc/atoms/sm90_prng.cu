#include "atoms/prng_cuda.h"
#include "atoms/sm90_prng.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {

const char* prng_expand_cuda(const PrngParams& p, int device, void* stream) {
  if (const char* refusal = int4fp8::refuse_device(device)) return refusal;
  const auto run = [&](auto kernel, int elements) {
    const int64_t per_cta = int64_t(elements) * kPrngThreads;
    const int64_t ctas = (p.elements + per_cta - 1) / per_cta;
    if (ctas >= int64_t(1) << 31) return cudaErrorInvalidConfiguration;
    return sm90::launch(kernel, dim3(unsigned(ctas)), kPrngThreads, 0, 1,
                        static_cast<cudaStream_t>(stream), p);
  };
  const cudaError_t error = p.distribution == Distribution::kSign
                                ? run(expand_kernel<Distribution::kSign>, kSignElements)
                            : p.distribution == Distribution::kNormal
                                ? run(expand_kernel<Distribution::kNormal>, kBlockElements)
                                : run(expand_kernel<Distribution::kUniform>, kBlockElements);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::atoms
