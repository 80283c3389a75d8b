// Between the dispatch table (sm90_matmul_dispatch.cu) and the kernel's translation units.
#pragma once

#include <cuda_runtime.h>

#include "fp4/sm90_matmul_config.h"

namespace wlib::fp4 {

// As CMake passes them to a translation unit, in WLIB_INSTANCE.
template <int kInstance>
struct InstanceSource;
template <>
struct InstanceSource<0> {
  using Type = Carriers<sm90::Fp8::kE4M3, sm90::Fp8::kE4M3>;
};
template <>
struct InstanceSource<1> {
  using Type = Carriers<sm90::Fp8::kE4M3, sm90::Fp8::kE5M2>;
};
template <>
struct InstanceSource<2> {
  using Type = Carriers<sm90::Fp8::kE5M2, sm90::Fp8::kE4M3>;
};
template <>
struct InstanceSource<3> {
  using Type = Carriers<sm90::Fp8::kE5M2, sm90::Fp8::kE5M2>;
};
template <>
struct InstanceSource<4> {
  using Type = FoldedCodes;
};
template <>
struct InstanceSource<5> {
  using Type = BF16Codes;
};
constexpr int kFoldedInstance = 4, kBF16Instance = 5;

template <int kInstance>
cudaError_t launch_matmul(const MatmulParams& p, const Workspace& w, When when,
                          cudaStream_t stream);
template <>
cudaError_t launch_matmul<0>(const MatmulParams&, const Workspace&, When, cudaStream_t);
template <>
cudaError_t launch_matmul<1>(const MatmulParams&, const Workspace&, When, cudaStream_t);
template <>
cudaError_t launch_matmul<2>(const MatmulParams&, const Workspace&, When, cudaStream_t);
template <>
cudaError_t launch_matmul<3>(const MatmulParams&, const Workspace&, When, cudaStream_t);
template <>
cudaError_t launch_matmul<4>(const MatmulParams&, const Workspace&, When, cudaStream_t);
template <>
cudaError_t launch_matmul<5>(const MatmulParams&, const Workspace&, When, cudaStream_t);

cudaError_t launch_exact(const MatmulParams& p, cudaStream_t stream);

}  // namespace wlib::fp4
