// One token tile of the decode kernel; compiled once per WLIB_TOKENS.
#include "int4fp8/decode_plan.h"
#include "int4fp8/sm90_decode.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"
#include "wlib/sm90/tensor_map.h"

namespace wlib::int4fp8 {
namespace {

template <class C>
cudaError_t launch_config(const GemmParams& g, cudaStream_t stream) {
  constexpr int kBytes = sizeof(DecodeSmem<C>);
  static_assert(kBytes <= 227 * 1024);
  DecodeParams p{};
  p.weight = g.weight;
  p.x_scale = g.x_scale;
  p.bias = g.bias;
  p.y = g.y;
  p.m = int(g.m);
  p.n = int(g.n);
  p.k_tiles = int(int4::ceil_div(g.k, int4::kTileColumns));
  p.bias_type = g.bias_type;
  p.out_type = g.out_type;
  p.token_blocks = int(int4::ceil_div(g.m, C::kTokens));
  const int row_blocks = int(int4::ceil_div(g.n, int4::kTileRows));
  p.items = row_blocks * p.token_blocks;

  DecodePlan plan;
  const auto resident = [](int split, int* clusters) {
    return sm90::resident_clusters(decode_kernel<C>, C::kThreads, kBytes, split, clusters);
  };
  if (const cudaError_t error = plan_decode(row_blocks, p.k_tiles, C::kTokens, resident, &plan))
    return error;
  p.split_log2 = plan.split_log2;
  const sm90::MatrixTiles tiles{
      g.x, uint64_t(g.m), uint64_t(g.k), uint64_t(g.x_stride), C::kTokens, int4::kTileColumns, 1};
  if (p.k_tiles > 0 && !sm90::make_tensor_map(&p.x, tiles)) return cudaErrorInvalidValue;
  const int clusters = p.items < plan.clusters ? p.items : plan.clusters;
  return sm90::launch(decode_kernel<C>, dim3(clusters << plan.split_log2), C::kThreads, kBytes,
                      1 << plan.split_log2, stream, p);
}

}  // namespace

template <>
cudaError_t launch_decode<WLIB_TOKENS>(const GemmParams& g, cudaStream_t stream) {
  const auto pick = [&]<bool kZeros>() {
    switch (g.groups_per_tile) {
      case 1: return launch_config<DecodeConfig<WLIB_TOKENS, 1, kZeros>>(g, stream);
      case 2: return launch_config<DecodeConfig<WLIB_TOKENS, 2, kZeros>>(g, stream);
      default: return launch_config<DecodeConfig<WLIB_TOKENS, 4, kZeros>>(g, stream);
    }
  };
  return g.zero_points ? pick.operator()<true>() : pick.operator()<false>();
}

}  // namespace wlib::int4fp8
