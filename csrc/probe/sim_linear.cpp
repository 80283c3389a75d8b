// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_linear.h"

#include <algorithm>
#include <cmath>

#include "atoms/sm90_linear.h"

namespace wlib::atoms {

namespace {

using Buffers = std::vector<sim::Buffer>;

template <class C>
sim::Report multiply(const LinearKernelParams& p, int ctas, const Buffers& buffers,
                     const sim::Options& options) {
  const sim::LaunchConfig config{
      {int(std::min<int64_t>(ctas, p.plan.items())), 1, 1}, C::kThreads, sizeof(LinearSmem<C>)};
  return sim::launch(config, options, buffers, linear_kernel<C>, p);
}

}  // namespace

sim::Report simulate_linear(const LinearParams& p, int ctas, const Buffers& buffers,
                            const sim::Options& options) {
  std::vector<float> partials(linear_plan(p).parts() * p.tokens * p.rows, NAN);
  LinearKernelParams params;
  make_linear_params(p, partials.data(), &params);
  Buffers all = buffers;
  all.push_back({partials.data(), partials.size() * sizeof(float), "partials", true});
  const auto run = [&]<LinearAtoms kAtoms>() {
#ifndef WLIB_SIM_ONLY_SMALL  // mutants run with one type
    if (p.type == FloatType::kFloat16)
      return multiply<LinearConfig<FloatType::kFloat16, kAtoms>>(params, ctas, all, options);
#endif
    return multiply<LinearConfig<FloatType::kBFloat16, kAtoms>>(params, ctas, all, options);
  };
  const sim::Report report = p.int4_groups ? run.operator()<LinearAtoms::kInt4>()
                             : p.atom_type == FloatType::kE4M3
                                 ? run.operator()<LinearAtoms::kFp8>()
                                 : run.operator()<LinearAtoms::kLikeX>();
  if (!report.ok()) return report;
  all.back().writable = false;
  const sim::LaunchConfig sum{{ctas, 1, 1}, kLinearSumThreads, 0};
  return sim::launch(sum, options, all, linear_sum_kernel, make_linear_sum(p, partials.data()));
}

}  // namespace wlib::atoms
