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
  const sim::LaunchConfig config{{launch.ctas, 1, 1}, C::kThreads, sizeof(CooperativeSmem<C>)};
  return sim::launch(config, options, gemm_buffers(g), cooperative_kernel<C>, p);
}

struct Instance {
  int tokens, slabs, stages, groups;
  bool zeros;
  sim::Report (*run)(const GemmParams&, const CooperativeLaunch&, const sim::Options&);
};
template <class C>
constexpr Instance instance = {C::kTokens, C::kSlabs, C::kStages, C::kGroups, C::kZeros, run<C>};

constexpr Instance kInstances[] = {
#ifndef WLIB_SIM_ONLY_SMALL  // which is all that mutants need
    instance<CooperativeConfig<128, 1, 1, false>>,
    instance<CooperativeConfig<128, 1, 1, true>>,
    instance<CooperativeConfig<128, 1, 2, false>>,
    instance<CooperativeConfig<128, 1, 2, true>>,
    instance<CooperativeConfig<128, 1, 4, false>>,
    instance<CooperativeConfig<128, 1, 4, true>>,
    instance<CooperativeConfig<128, 2, 1, false>>,
    instance<CooperativeConfig<128, 2, 1, true>>,
    instance<CooperativeConfig<128, 2, 2, false>>,
    instance<CooperativeConfig<128, 2, 2, true>>,
    instance<CooperativeConfig<128, 2, 4, false>>,
    instance<CooperativeConfig<128, 2, 4, true>>,
#endif
    // Rings shorter than most problems, tiles smaller than most.
    instance<CooperativeConfig<64, 1, 1, false, 2>>,
    instance<CooperativeConfig<64, 2, 2, true, 3>>,
};

}  // namespace

sim::Report simulate_cooperative(const GemmParams& gemm, const CooperativeLaunch& launch,
                                 const sim::Options& options) {
  for (const Instance& i : kInstances) {
    if (i.tokens == launch.tokens && i.slabs == launch.slabs && i.stages == launch.stages &&
        i.groups == gemm.groups_per_tile && i.zeros == gemm.zero_points) {
      return i.run(gemm, launch, options);
    }
  }
  throw std::invalid_argument("no such instance of the cooperative kernel");
}

std::vector<std::vector<int>> cooperative_instances() {
  std::vector<std::vector<int>> rows;
  for (const Instance& i : kInstances)
    rows.push_back({i.tokens, i.slabs, i.stages, i.groups, i.zeros});
  return rows;
}

}  // namespace wlib::int4fp8
