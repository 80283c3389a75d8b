// The kernels of the INT4 cache in the simulator: what the instrumented file offers to the
// bindings.
#pragma once

#include "sim/api.h"
#include "wlib/params/prefill.h"

namespace wlib::prefill {

// The whole append as one launch.
sim::Report simulate_append(const AppendParams& p, int tokens_per_cta, int heads_per_cta,
                            const sim::Options& options);
sim::Report simulate_quantize_queries(const QuantizeQueriesParams& p, const sim::Options& options);

}  // namespace wlib::prefill
