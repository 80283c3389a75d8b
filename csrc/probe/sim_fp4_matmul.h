// fp4_matmul's kernels in the simulator.
#pragma once

#include <string>

#include "sim/api.h"
#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// The kernels that the GPU would be launched with, one after the other, each in at most `ctas`
// CTAs (rounded up to a cluster). `instance` 0: the library's tiles, 1: small ones with short
// rings. Throws std::invalid_argument for what is not compiled in.
sim::Report simulate_matmul(const MatmulParams& p, int instance, int ctas,
                            const sim::Options& options);

}  // namespace wlib::fp4
