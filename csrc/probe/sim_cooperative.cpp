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
  sim::Report (*run)(const GemmParams&, const CooperativeLaunch&, const sim::Options&);
};
template <class C>
constexpr Instance instance = {C::kTokens, C::kSlabs, C::kStages, C::kGroups, run<C>};

constexpr Instance kInstances[] = {
#ifndef WLIB_SIM_ONLY_SMALL  // which is all that mutants need
    instance<CooperativeConfig<128, 1, 1>>,
    instance<CooperativeConfig<128, 1, 2>>,
    instance<CooperativeConfig<128, 1, 4>>,
    instance<CooperativeConfig<128, 2, 1>>,
    instance<CooperativeConfig<128, 2, 2>>,
    instance<CooperativeConfig<128, 2, 4>>,
#endif
    // Rings shorter than most problems, tiles smaller than most.
    instance<CooperativeConfig<64, 1, 1, 2>>,
    instance<CooperativeConfig<64, 2, 2, 3>>,
};

}  // namespace

sim::Report simulate_cooperative(const GemmParams& gemm, const CooperativeLaunch& launch,
                                 const sim::Options& options) {
  for (const Instance& i : kInstances) {
    if (i.tokens == launch.tokens && i.slabs == launch.slabs && i.stages == launch.stages &&
        i.groups == gemm.groups_per_tile && !gemm.zero_points) {
      return i.run(gemm, launch, options);
    }
  }
  throw std::invalid_argument("no such instance of the cooperative kernel");
}

std::vector<std::vector<int>> cooperative_instances() {
  std::vector<std::vector<int>> rows;
  for (const Instance& i : kInstances) rows.push_back({i.tokens, i.slabs, i.stages, i.groups});
  return rows;
}

}  // namespace wlib::int4fp8
