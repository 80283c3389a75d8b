// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_linear.h"

#include <algorithm>
#include <cmath>

#include "atoms/sm90_linear.h"

namespace wlib::atoms {

sim::Report simulate_linear(const LinearParams& p, int ctas,
                            const std::vector<sim::Buffer>& buffers, const sim::Options& options) {
  const LinearPlan plan = linear_plan(p);
  std::vector<float> partials(plan.parts() * p.tokens * p.rows, NAN);
  LinearKernelParams params;
  make_linear_params(p, partials.data(), &params);
  std::vector<sim::Buffer> all = buffers;
  all.push_back({partials.data(), partials.size() * sizeof(float), "partials", true});
  const sim::LaunchConfig config{
      {int(std::min<int64_t>(ctas, plan.items())), 1, 1}, kLinearThreads, sizeof(LinearSmem)};
  const auto kernel = p.type == FloatType::kBFloat16 ? linear_kernel<FloatType::kBFloat16>
                                                     : linear_kernel<FloatType::kFloat16>;
  const sim::Report report = sim::launch(config, options, all, kernel, params);
  if (!report.ok()) return report;
  all.back().writable = false;
  const sim::LaunchConfig sum{{ctas, 1, 1}, kLinearSumThreads, 0};
  return sim::launch(sum, options, all, linear_sum_kernel, make_linear_sum(p, partials.data()));
}

}  // namespace wlib::atoms
