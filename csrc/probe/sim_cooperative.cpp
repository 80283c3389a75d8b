// Instrumented: the loads and stores of the kernel included here call the checker
// (tests/sim/hooks.cpp).
#include <stdexcept>

#include "int4fp8/sm90_cooperative.h"
#include "probe/sim_int4fp8.h"

namespace wlib::int4fp8 {
namespace {

template <class C>
sim::Report run(const GemmParams& g, const CooperativeLaunch& launch, const sim::Options& options) {
  CooperativeParams p;
  make_cooperative_params<C>(g, &p);
  const sim::LaunchConfig config{
      {launch.clusters * C::kCtas, 1, 1}, C::kThreads, sizeof(CooperativeSmem<C>), C::kCtas};
  return sim::launch(config, options, gemm_buffers(g), cooperative_kernel<C>, p);
}

struct Instance {
  int tokens, rows, stages, groups;
  bool zeros;
  sim::Report (*run)(const GemmParams&, const CooperativeLaunch&, const sim::Options&);
};
template <class C>
constexpr Instance instance = {C::kTokens, C::kRows, C::kStages, C::kGroups, C::kZeros, run<C>};

constexpr Instance kInstances[] = {
#ifndef WLIB_SIM_ONLY_SMALL  // which is all that mutants need
    instance<CooperativeConfig<128, 128, 1, false>>,
    instance<CooperativeConfig<128, 128, 1, true>>,
    instance<CooperativeConfig<128, 128, 2, false>>,
    instance<CooperativeConfig<128, 128, 2, true>>,
    instance<CooperativeConfig<128, 128, 4, false>>,
    instance<CooperativeConfig<128, 128, 4, true>>,
    instance<CooperativeConfig<128, 256, 1, false>>,
    instance<CooperativeConfig<128, 256, 1, true>>,
    instance<CooperativeConfig<128, 256, 2, false>>,
    instance<CooperativeConfig<128, 256, 2, true>>,
    instance<CooperativeConfig<128, 256, 4, false>>,
    instance<CooperativeConfig<128, 256, 4, true>>,
#endif
    // Rings shorter than most problems, tiles smaller than most.
    instance<CooperativeConfig<32, 128, 1, false, 3>>,
    instance<CooperativeConfig<32, 256, 2, true, 2>>,
};

}  // namespace

sim::Report simulate_cooperative(const GemmParams& gemm, const CooperativeLaunch& launch,
                                 const sim::Options& options) {
  for (const Instance& i : kInstances) {
    if (i.tokens == launch.tokens && i.rows == launch.rows && i.stages == launch.stages &&
        i.groups == gemm.groups_per_tile && i.zeros == gemm.zero_points) {
      return i.run(gemm, launch, options);
    }
  }
  throw std::invalid_argument("no such instance of the cooperative kernel");
}

std::vector<std::vector<int>> cooperative_instances() {
  std::vector<std::vector<int>> rows;
  for (const Instance& i : kInstances)
    rows.push_back({i.tokens, i.rows, i.stages, i.groups, i.zeros});
  return rows;
}

}  // namespace wlib::int4fp8
