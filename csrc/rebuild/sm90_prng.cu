#include <algorithm>

#include "atoms/finish_cuda.h"
#include "cuda_device.h"
#include "rebuild/prng_cuda.h"
#include "rebuild/sm90_prng.h"
#include "wlib/sm90/launch.h"

namespace wlib::rebuild {

const char* prng_expand_cuda(const PrngParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
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

int64_t project_chunks(const PrngParams& p) { return ProjectGrid(p.elements).chunks; }

const char* prng_project_cuda(const PrngParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  constexpr int64_t kCtas = 132 * 8;  // enough to fill the device; results do not depend on it
  const int64_t chunks = project_chunks(p);
  if (chunks > 0 && p.count > 0) {
    const int64_t groups = (int64_t(p.count) + kProjectBases - 1) / kProjectBases;
    const int64_t parts = std::clamp<int64_t>(kCtas / chunks, 1, groups);
    const auto kernel = p.distribution == Distribution::kSign ? project_kernel<Distribution::kSign>
                        : p.distribution == Distribution::kNormal
                            ? project_kernel<Distribution::kNormal>
                            : project_kernel<Distribution::kUniform>;
    const cudaError_t error =
        sm90::launch(kernel, dim3(unsigned(chunks * parts)), kPrngThreads, sizeof(ProjectSmem), 1,
                     static_cast<cudaStream_t>(stream), p);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return atoms::finish_cuda({p.partials, static_cast<float*>(p.coef), 1, chunks, p.count, 1.0},
                            stream);
}

}  // namespace wlib::rebuild
