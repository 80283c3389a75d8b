// The kernels of weights from few numbers in the simulator.
#pragma once

#include <vector>

#include "sim/api.h"
#include "wlib/params/prng.h"
#include "wlib/params/rebuild.h"

namespace wlib::rebuild {

// `ctas` CTAs share the tiles; `capacity` is that of the table, one of the library's two.
sim::Report simulate_rebuild(const std::vector<RebuildLayer>& layers, Rounding rounding,
                             int capacity, int ctas, const std::vector<sim::Buffer>& buffers,
                             const sim::Options& options);
sim::Report simulate_prng_expand(const PrngParams& p, const sim::Options& options);
sim::Report simulate_prng_project(PrngParams p, int parts, const sim::Options& options);

}  // namespace wlib::rebuild
