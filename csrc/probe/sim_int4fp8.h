// The int4fp8 kernels in the simulator: what the instrumented file offers to the bindings.
#pragma once

#include "sim/api.h"
#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8 {

// Which instance of the decode kernel, and how it is launched.
struct DecodeLaunch {
  int tokens, consumers, stages;
  int split;     // CTAs per cluster
  int clusters;  // resident at a time; they share the items
};

// Which instance of the cooperative kernel, and how many clusters share the tiles.
struct CooperativeLaunch {
  int tokens, rows, stages;
  int clusters;  // of one CTA or two, by the instance
};

// All throw std::invalid_argument for what is not compiled in.
sim::Report simulate_decode(const GemmParams& gemm, const DecodeLaunch& launch,
                            const sim::Options& options);
sim::Report simulate_cooperative(const GemmParams& gemm, const CooperativeLaunch& launch,
                                 const sim::Options& options);
sim::Report simulate_quantize(const QuantizeParams& params, const sim::Options& options);
sim::Report simulate_group_sums(const GroupSumsParams& params, const sim::Options& options);

// Rows {tokens, consumers, stages, groups per tile, zero points} of what simulate_decode accepts;
// the library's own come first.
std::vector<std::vector<int>> decode_instances();
// Rows {tokens, rows, stages, groups per tile, zero points} of what simulate_cooperative accepts.
std::vector<std::vector<int>> cooperative_instances();

inline sim::Buffer input(const void* data, int64_t bytes, const char* name) {
  return {const_cast<void*>(data), size_t(bytes), name, false};
}

// What a GEMM kernel may touch.
std::vector<sim::Buffer> gemm_buffers(const GemmParams& gemm);

}  // namespace wlib::int4fp8
