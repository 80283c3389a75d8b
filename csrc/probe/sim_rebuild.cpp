// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_rebuild.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "probe/sim_atoms.h"
#include "rebuild/rebuild_plan.h"
#include "rebuild/sm90_prng.h"
#include "rebuild/sm90_rebuild_fused.h"
#include "rebuild/sm90_rebuild_tensor.h"

namespace wlib::rebuild {
namespace {

template <class Products, int kCapacity>
sim::Report run(const RebuildLaunch& one, Rounding rounding, int ctas,
                const std::vector<sim::Buffer>& buffers, const sim::Options& options) {
  if (one.layers.size() > kCapacity)
    throw std::invalid_argument("more layers than the table holds");
  RebuildTable<kCapacity> table{};
  std::copy(one.layers.begin(), one.layers.end(), table.layers);
  table.count = int32_t(one.layers.size());
  table.tiles = int32_t(one.tiles);
  table.rounding = rounding;
  const sim::LaunchConfig config{
      {std::min(ctas, table.tiles), 1, 1}, kRebuildThreads, sizeof(typename Products::Smem)};
  return sim::launch(config, options, buffers, rebuild_kernel<Products, kCapacity>, table);
}

}  // namespace

sim::Report simulate_rebuild(const std::vector<RebuildLayer>& layers, Rounding rounding,
                             int capacity, int ctas, const std::vector<sim::Buffer>& buffers,
                             const sim::Options& options) {
  sim::Report all;
  const bool few = capacity == kFewLayers;
  if (!few && capacity != kManyLayers) throw std::invalid_argument("no such capacity");
  for (const RebuildLaunch& one : plan_rebuild(layers)) {
    const auto fused = few ? run<FusedProducts, kFewLayers> : run<FusedProducts, kManyLayers>;
    const auto tensor = few ? run<TensorProducts, kFewLayers> : run<TensorProducts, kManyLayers>;
    const sim::Report report =
        (one.tensor_cores ? tensor : fused)(one, rounding, ctas, buffers, options);
    all.findings.insert(all.findings.end(), report.findings.begin(), report.findings.end());
  }
  return all;
}

sim::Report simulate_prng_expand(const PrngParams& p, const sim::Options& options) {
  const int64_t bytes = p.elements * (p.value_type == FloatType::kFloat32 ? 4 : 2);
  const std::vector<sim::Buffer> buffers = {{p.coef, size_t(p.count) * 4, "coef", false},
                                            {p.values, size_t(bytes), "values", true}};
  const auto launch = [&](auto kernel, int elements) {
    const int64_t per_cta = int64_t(elements) * kPrngThreads;
    const sim::LaunchConfig config{
        {int((p.elements + per_cta - 1) / per_cta), 1, 1}, kPrngThreads, 0};
    return sim::launch(config, options, buffers, kernel, p);
  };
  switch (p.distribution) {
    case Distribution::kUniform:
      return launch(expand_kernel<Distribution::kUniform>, kBlockElements);
    case Distribution::kNormal: return launch(expand_kernel<Distribution::kNormal>, kBlockElements);
    default: return launch(expand_kernel<Distribution::kSign>, kSignElements);
  }
}

sim::Report simulate_prng_project(PrngParams p, int parts, const sim::Options& options) {
  const int64_t value_bytes = p.elements * (p.value_type == FloatType::kFloat32 ? 4 : 2);
  const int64_t chunks = ProjectGrid(p.elements).chunks;
  std::vector<float> partials(chunks * p.count + 1, NAN);
  p.partials = partials.data();
  std::vector<sim::Buffer> buffers = {{p.values, size_t(value_bytes), "values", false},
                                      {p.coef, size_t(p.count) * 4, "coef", true},
                                      {partials.data(), partials.size() * 4, "partials", true}};
  sim::Report report;
  if (chunks > 0 && p.count > 0) {
    const auto kernel = p.distribution == Distribution::kSign ? project_kernel<Distribution::kSign>
                        : p.distribution == Distribution::kNormal
                            ? project_kernel<Distribution::kNormal>
                            : project_kernel<Distribution::kUniform>;
    report = sim::launch({{int(chunks) * parts, 1, 1}, kPrngThreads, sizeof(ProjectSmem)}, options,
                         buffers, kernel, p);
  }
  if (!report.ok()) return report;
  buffers.back() = {partials.data(), partials.size() * 4, "partials", false};
  return atoms::simulate_finish({p.partials, static_cast<float*>(p.coef), 1, chunks, p.count, 1.0},
                                options, buffers);
}

}  // namespace wlib::rebuild
