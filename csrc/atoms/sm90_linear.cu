#include <algorithm>

#include "atoms/linear_cuda.h"
#include "atoms/sm90_linear.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {
namespace {

template <FloatType kType>
cudaError_t launch_products(const LinearKernelParams& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(LinearSmem);
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(linear_kernel<kType>, kLinearThreads, kBytes, 1, &resident))
    return error;
  const dim3 grid(unsigned(std::min<int64_t>(p.plan.items(), resident)));
  return sm90::launch(linear_kernel<kType>, grid, kLinearThreads, kBytes, 1, stream, p);
}

}  // namespace

int64_t linear_partials(const LinearParams& p) {
  return linear_plan(p).parts() * p.tokens * p.rows;
}

const char* linear_cuda(const LinearParams& p, float* partials, int device, void* stream) {
  if (const char* refusal = int4fp8::refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  LinearKernelParams params;
  if (!make_linear_params(p, partials, &params)) return "cuTensorMapEncodeTiled failed";
  cudaError_t error = p.type == FloatType::kBFloat16
                          ? launch_products<FloatType::kBFloat16>(params, on)
                          : launch_products<FloatType::kFloat16>(params, on);
  const LinearSumParams sum = make_linear_sum(p, partials);
  const int64_t ctas = (sum.outputs + kLinearSumThreads - 1) / kLinearSumThreads;
  if (error == cudaSuccess)
    error = sm90::launch(linear_sum_kernel, dim3(unsigned(std::min<int64_t>(ctas, 1 << 16))),
                         kLinearSumThreads, 0, 1, on, sum);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::atoms
