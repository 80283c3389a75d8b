// One token tile of the decode kernel; compiled once per WLIB_INSTANCE.
#include "int4fp8/decode_plan.h"
#include "int4fp8/sm90_decode.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::int4fp8 {
namespace {

template <class C>
cudaError_t launch_config(const GemmParams& g, cudaStream_t stream) {
  constexpr int kBytes = sizeof(DecodeSmem<C>);
  static_assert(kBytes <= 227 * 1024);
  const bool grouped = g.expert_offsets != nullptr;
  // With experts, as if each had tokens, if there are as many.
  const int64_t weights = !grouped ? 1 : g.experts < g.m ? g.experts : g.m;
  const int row_blocks = int(int4::ceil_div(g.n, int4::kTileRows) * weights);
  const int k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  DecodePlan plan;
  const auto resident = [](int split, int* clusters) {
    return sm90::resident_clusters(decode_kernel<C>, C::kThreads, kBytes, split, clusters);
  };
  if (const cudaError_t error =
          plan_decode(row_blocks, k_tiles, C::kTokens, resident, &plan, !grouped))
    return error;
  DecodeParams p;
  if (!make_decode_params<C>(g, plan.split_log2, &p)) return cudaErrorInvalidValue;
  const int64_t items = int64_t(p.row_blocks) * p.token_blocks;
  const int clusters = items < plan.clusters ? int(items) : plan.clusters;
  return sm90::launch(decode_kernel<C>, dim3(clusters << plan.split_log2), C::kThreads, kBytes,
                      1 << plan.split_log2, stream, p, sm90::Start::kEarly);
}

}  // namespace

template <>
cudaError_t launch_decode<WLIB_INSTANCE>(const GemmParams& g, cudaStream_t stream) {
  const auto pick = [&]<bool kZeros>() {
    switch (g.groups_per_tile) {
      case 1: return launch_config<DecodeConfig<WLIB_INSTANCE, 1, kZeros>>(g, stream);
      case 2: return launch_config<DecodeConfig<WLIB_INSTANCE, 2, kZeros>>(g, stream);
      default: return launch_config<DecodeConfig<WLIB_INSTANCE, 4, kZeros>>(g, stream);
    }
  };
  return g.zero_points ? pick.operator()<true>() : pick.operator()<false>();
}

}  // namespace wlib::int4fp8
