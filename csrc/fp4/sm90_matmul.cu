// The matmul kernel for one kind of operands; compiled once per WLIB_INSTANCE.
#include "fp4/sm90_matmul.h"
#include "fp4/sm90_matmul_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::fp4 {

template <>
cudaError_t launch_matmul<WLIB_INSTANCE>(const MatmulParams& op, const Workspace& w, When when,
                                         cudaStream_t stream) {
  using C = MatmulConfig<InstanceSource<WLIB_INSTANCE>::Type>;
  constexpr int kBytes = sizeof(MatmulSmem<C>);
  static_assert(kBytes <= 227 * 1024);
  MatmulKernelParams p;
  if (!make_matmul_params<C>(op, w, when, &p)) return cudaErrorInvalidValue;
  int clusters = 0;  // resident at a time
  if (const cudaError_t error =
          sm90::resident_clusters(matmul_kernel<C>, C::kThreads, kBytes, C::kCtas, &clusters))
    return error;
  const int64_t tiles = int64_t(p.row_tiles) * p.column_tiles;
  if (tiles < clusters) clusters = int(tiles);
  return sm90::launch(matmul_kernel<C>, dim3(clusters * C::kCtas), C::kThreads, kBytes, C::kCtas,
                      stream, p);
}

}  // namespace wlib::fp4
