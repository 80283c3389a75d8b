// Instrumented: the loads and stores of the kernels included here call the checker
// (tests/sim/hooks.cpp).
#include "probe/sim_int4fp8.h"

#include <bit>
#include <stdexcept>

#include "int4fp8/sm90_decode.h"

namespace wlib::int4fp8 {
namespace {

template <class C>
sim::Report run(const GemmParams& g, const DecodeLaunch& launch, const sim::Options& options) {
  DecodeParams p;
  make_decode_params<C>(g, std::countr_zero(unsigned(launch.split)), &p);
  const sim::LaunchConfig config{{launch.clusters * launch.split, 1, 1},
                                 C::kThreads,
                                 sizeof(DecodeSmem<C>),
                                 launch.split,
                                 /*dependent=*/true};
  return sim::launch(config, options, gemm_buffers(g), decode_kernel<C>, p);
}

struct Instance {
  int tokens, consumers, stages, groups;
  bool zeros;
  sim::Report (*run)(const GemmParams&, const DecodeLaunch&, const sim::Options&);
};
template <class C>
constexpr Instance instance = {C::kTokens, C::kConsumers, C::kStages,
                               C::kGroups, C::kZeros,     run<C>};

constexpr Instance kInstances[] = {
#ifndef WLIB_SIM_ONLY_SMALL  // which is all that mutants need
    instance<DecodeConfig<8, 1, false>>,
    instance<DecodeConfig<8, 1, true>>,
    instance<DecodeConfig<8, 2, false>>,
    instance<DecodeConfig<8, 2, true>>,
    instance<DecodeConfig<8, 4, false>>,
    instance<DecodeConfig<8, 4, true>>,
    instance<DecodeConfig<16, 1, false>>,
    instance<DecodeConfig<16, 1, true>>,
    instance<DecodeConfig<16, 2, false>>,
    instance<DecodeConfig<16, 2, true>>,
    instance<DecodeConfig<16, 4, false>>,
    instance<DecodeConfig<16, 4, true>>,
    instance<DecodeConfig<32, 1, false>>,
    instance<DecodeConfig<32, 1, true>>,
    instance<DecodeConfig<32, 2, false>>,
    instance<DecodeConfig<32, 2, true>>,
    instance<DecodeConfig<32, 4, false>>,
    instance<DecodeConfig<32, 4, true>>,
    instance<DecodeConfig<64, 1, false>>,
    instance<DecodeConfig<64, 1, true>>,
    instance<DecodeConfig<64, 2, false>>,
    instance<DecodeConfig<64, 2, true>>,
    instance<DecodeConfig<64, 4, false>>,
    instance<DecodeConfig<64, 4, true>>,
#endif
    // Rings shorter than most problems.
    instance<DecodeConfig<8, 1, false, 2, 2>>,
    instance<DecodeConfig<8, 2, true, 2, 2>>,
    instance<DecodeConfig<16, 4, false, 3, 3>>,
};

}  // namespace

std::vector<sim::Buffer> gemm_buffers(const GemmParams& g) {
  const int64_t k_tiles = int4::ceil_div(g.k, int4::kTileColumns);
  const int64_t groups = int4::ceil_div(g.k, int4::kTileColumns / g.groups_per_tile);
  const int64_t block_bytes = int4::Layout{g.groups_per_tile, g.zero_points}.block_bytes(k_tiles);
  const int64_t experts = g.expert_offsets ? g.experts : 1;
  const Epilogue& e = g.epilogue;
  const int64_t outputs = g.m * e.columns(g.n);
  const bool in_place = e.residual == e.y;
  std::vector<sim::Buffer> buffers = {
      input(g.x, (g.m - 1) * g.x_stride + g.k, "x"),
      input(g.weight, experts * int4::ceil_div(g.n, int4::kTileRows) * block_bytes, "weight"),
      input(g.x_scale, g.m * 4, "x_scale"),
      input(g.expert_offsets, g.expert_offsets ? (experts + 1) * (g.wide_offsets ? 8 : 4) : 0,
            "expert_offsets"),
      input(g.x_sums, g.x_sums ? groups * g.x_sums_pitch * 4 : 0, "x_sums"),
      input(e.bias, e.bias ? experts * g.n * bytes_of(e.bias_type) : 0, "bias"),
      input(e.residual, e.residual && !in_place ? outputs * bytes_of(e.residual_type) : 0,
            "residual"),
      input(e.out_scale, e.out_scale ? 4 : 0, "out_scale"),
      {e.y, outputs * bytes_of(e.out_type), "y", true, in_place}};
  buffers[1].settled = g.prefetch_weight;
  return buffers;
}

sim::Report simulate_decode(const GemmParams& gemm, const DecodeLaunch& launch,
                            const sim::Options& options) {
  for (const Instance& i : kInstances) {
    if (i.tokens == launch.tokens && i.consumers == launch.consumers && i.stages == launch.stages &&
        i.groups == gemm.groups_per_tile && i.zeros == gemm.zero_points) {
      return i.run(gemm, launch, options);
    }
  }
  throw std::invalid_argument("no such instance of the decode kernel");
}

std::vector<std::vector<int>> decode_instances() {
  std::vector<std::vector<int>> rows;
  for (const Instance& i : kInstances)
    rows.push_back({i.tokens, i.consumers, i.stages, i.groups, i.zeros});
  return rows;
}

}  // namespace wlib::int4fp8
