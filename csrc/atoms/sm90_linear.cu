#include <algorithm>

#include "atoms/linear_cuda.h"
#include "atoms/sm90_linear.h"
#include "cuda_device.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {
namespace {

template <FloatType kType, LinearAtoms kAtoms>
cudaError_t launch_products(const LinearKernelParams& p, cudaStream_t stream) {
  using C = LinearConfig<kType, kAtoms>;
  constexpr int kBytes = sizeof(LinearSmem<C>);
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(linear_kernel<C>, C::kThreads, kBytes, 1, &resident))
    return error;
  const dim3 grid(unsigned(std::min<int64_t>(p.plan.items(), resident)));
  return sm90::launch(linear_kernel<C>, grid, C::kThreads, kBytes, 1, stream, p);
}

}  // namespace

int64_t linear_partials(const LinearParams& p) {
  return linear_plan(p).parts() * p.tokens * p.rows;
}

const char* linear_cuda(const LinearParams& p, float* partials, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  LinearKernelParams params;
  if (!make_linear_params(p, partials, &params)) return "cuTensorMapEncodeTiled failed";
  const auto launch = [&]<LinearAtoms kAtoms>() {
    return p.type == FloatType::kBFloat16
               ? launch_products<FloatType::kBFloat16, kAtoms>(params, on)
               : launch_products<FloatType::kFloat16, kAtoms>(params, on);
  };
  cudaError_t error = p.int4_groups                     ? launch.operator()<LinearAtoms::kInt4>()
                      : p.atom_type == FloatType::kE4M3 ? launch.operator()<LinearAtoms::kFp8>()
                                                        : launch.operator()<LinearAtoms::kLikeX>();
  const LinearSumParams sum = make_linear_sum(p, partials);
  const int64_t ctas = (sum.outputs + kLinearSumThreads - 1) / kLinearSumThreads;
  if (error == cudaSuccess)
    error = sm90::launch(linear_sum_kernel, dim3(unsigned(std::min<int64_t>(ctas, 1 << 16))),
                         kLinearSumThreads, 0, 1, on, sum);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::atoms
