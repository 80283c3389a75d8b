// Instrumented, like sim_int4fp8.cpp: the quantiser and the group sums, both on a launch before
// them.
#include "int4fp8/sm90_group_sums.h"
#include "int4fp8/sm90_quantize.h"
#include "probe/sim_int4fp8.h"

namespace wlib::int4fp8 {

sim::Report simulate_quantize(const QuantizeParams& p, const sim::Options& options) {
  const int64_t bytes = bytes_of(p.x_type), width = p.input == RowInput::kSiluMul ? 2 * p.k : p.k;
  const int64_t groups = p.sums ? (p.k + (1 << p.group_log2) - 1) >> p.group_log2 : 0;
  std::vector<sim::Buffer> buffers = {
      input(p.x, ((p.rows - 1) * p.x_stride + width) * bytes, "x"),
      input(p.weight, p.weight ? p.k * bytes_of(p.weight_type) : 0, "weight"),
      {p.codes, size_t(p.rows * p.k), "codes", true},
      {p.scale, size_t(p.rows) * 4, "scale", true},
      {p.sums, size_t(groups * p.pitch) * 4, "sums", true}};
  if (p.residual) {
    const int64_t elements = (p.rows - 1) * p.residual_stride + p.k;
    buffers.push_back(input(p.residual, elements * bytes, "residual"));
    buffers.push_back({p.new_residual, size_t(p.rows * p.k * bytes), "new_residual", true});
  }
  const QuantizeLaunch l = quantize_launch(p);
  const sim::LaunchConfig config{{int(l.ctas), 1, 1}, l.threads, size_t(l.smem_bytes), 1, true};
  return sim::launch(config, options, buffers, l.kernel, p);
}

sim::Report simulate_group_sums(const GroupSumsParams& p, const sim::Options& options) {
  const int64_t groups = (p.k + (1 << p.group_log2) - 1) >> p.group_log2;
  const std::vector<sim::Buffer> buffers = {input(p.x, (p.rows - 1) * p.x_stride + p.k, "x"),
                                            {p.sums, size_t(groups * p.pitch) * 4, "sums", true}};
  const sim::LaunchConfig config{{int(p.pitch / kSumsAlignment), 1, 1}, kSumsThreads, 0, 1, true};
  return sim::launch(config, options, buffers, group_sums_kernel, p);
}

}  // namespace wlib::int4fp8
