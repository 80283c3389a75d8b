// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_rebuild.h"

#include <algorithm>
#include <stdexcept>

#include "atoms/sm90_prng.h"
#include "atoms/sm90_rebuild.h"

namespace wlib::atoms {
namespace {

template <int kCapacity>
sim::Report run(const std::vector<RebuildLayer>& layers, int tiles, Rounding rounding, int ctas,
                const std::vector<sim::Buffer>& buffers, const sim::Options& options) {
  if (layers.size() > kCapacity) throw std::invalid_argument("more layers than the table holds");
  RebuildTable<kCapacity> table{};
  std::copy(layers.begin(), layers.end(), table.layers);
  table.count = int32_t(layers.size());
  table.tiles = tiles;
  table.rounding = rounding;
  const sim::LaunchConfig config{
      {std::min(ctas, tiles), 1, 1}, kRebuildThreads, sizeof(RebuildSmem)};
  return sim::launch(config, options, buffers, rebuild_kernel<kCapacity>, table);
}

}  // namespace

sim::Report simulate_rebuild(std::vector<RebuildLayer> layers, Rounding rounding, int capacity,
                             int ctas, const std::vector<sim::Buffer>& buffers,
                             const sim::Options& options) {
  int tiles = 0;
  for (RebuildLayer& layer : layers) {
    layer.first_tile = tiles;
    if (layer.rows > 0 && layer.columns > 0) tiles += int(RebuildView(layer).tiles());
  }
  const auto simulate = capacity == 8 ? run<8> : capacity == 280 ? run<280> : nullptr;
  if (!simulate) throw std::invalid_argument("no such capacity");
  return simulate(layers, tiles, rounding, ctas, buffers, options);
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

}  // namespace wlib::atoms
