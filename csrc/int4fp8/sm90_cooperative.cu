// The cooperative kernel; compiled once per number of rows of a tile, WLIB_INSTANCE.
#include "int4fp8/sm90_cooperative.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::int4fp8 {
namespace {

template <class C>
cudaError_t launch_config(const GemmParams& g, int sms, cudaStream_t stream) {
  constexpr int kBytes = sizeof(CooperativeSmem<C>);
  static_assert(kBytes <= 227 * 1024);
  CooperativeParams p;
  if (!make_cooperative_params<C>(g, &p)) return cudaErrorInvalidValue;
  int clusters = sms;  // resident at a time
  if constexpr (C::kCtas > 1) {
    if (const cudaError_t error = sm90::resident_clusters(cooperative_kernel<C>, C::kThreads,
                                                          kBytes, C::kCtas, &clusters))
      return error;
  }
  const int64_t tiles = int64_t(p.row_tiles) * p.token_blocks;
  if (tiles < clusters) clusters = int(tiles);
  return sm90::launch(cooperative_kernel<C>, dim3(clusters * C::kCtas), C::kThreads, kBytes,
                      C::kCtas, stream, p);
}

template <bool kZeros>
cudaError_t launch_groups(const GemmParams& g, int sms, cudaStream_t stream) {
  switch (g.groups_per_tile) {
    case 1: return launch_config<CooperativeConfig<128, WLIB_INSTANCE, 1, kZeros>>(g, sms, stream);
    case 2: return launch_config<CooperativeConfig<128, WLIB_INSTANCE, 2, kZeros>>(g, sms, stream);
    default: return launch_config<CooperativeConfig<128, WLIB_INSTANCE, 4, kZeros>>(g, sms, stream);
  }
}

}  // namespace

template <>
cudaError_t launch_cooperative<WLIB_INSTANCE>(const GemmParams& g, int sms, cudaStream_t stream) {
  return g.zero_points ? launch_groups<true>(g, sms, stream) : launch_groups<false>(g, sms, stream);
}

}  // namespace wlib::int4fp8
