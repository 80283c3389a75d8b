// The quantiser of FP4 in the simulator: what the instrumented file offers to the bindings.
#pragma once

#include <span>

#include "sim/api.h"
#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// All passes, up to the first with findings; allocates what they hand to each other.
sim::Report simulate_quantize(std::span<const QuantizeParams> sides, const sim::Options& options);
sim::Report simulate_hadamard(const HadamardParams& p, const sim::Options& options);
sim::Report simulate_signs(const SignsParams& p, const sim::Options& options);

}  // namespace wlib::fp4
