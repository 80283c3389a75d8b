// The kernels of linear layers over shared atoms in the simulator.
#pragma once

#include <vector>

#include "atoms/linear_plan.h"
#include "sim/api.h"
#include "wlib/params/atoms_linear.h"

namespace wlib::atoms {

// `ctas` CTAs share the items. Findings of the first kernel that has any.
sim::Report simulate_linear(const LinearParams& p, int ctas,
                            const std::vector<sim::Buffer>& buffers, const sim::Options& options);

}  // namespace wlib::atoms
