// The kernels of shared atoms in the simulator.
#pragma once

#include <span>
#include <vector>

#include "sim/api.h"
#include "wlib/params/atoms.h"

namespace wlib::atoms {

using Buffers = std::vector<sim::Buffer>;

// `ctas` CTAs share the tiles. With `resident` false the kernel that reads its operands again is
// run, as for sizes that do not fit into shared memory.
struct AtomsLaunch {
  int ctas;
  bool resident;
  sim::Options options;
};

// Findings of all launches.
sim::Report simulate_reconstruct(const ReconstructParams& p, const AtomsLaunch& how,
                                 const Buffers& buffers);
sim::Report simulate_combine(std::span<const ReconstructParams> tensors, bool few,
                             const AtomsLaunch& how, const Buffers& buffers);
// The second stage over partial sums that the first has made; `out` is among the buffers.
sim::Report simulate_finish(const FinishParams& p, const sim::Options& options,
                            const Buffers& buffers);
// Sets p.partials; grad_coef is among the buffers.
sim::Report simulate_backward(ReconstructBackwardParams p, const AtomsLaunch& how,
                              const Buffers& buffers);

}  // namespace wlib::atoms
