// Instrumented, like sim_int4fp8.cpp: the quantiser and the group sums.
#include "int4fp8/sm90_group_sums.h"
#include "int4fp8/sm90_quantize.h"
#include "probe/sim_int4fp8.h"

namespace wlib::int4fp8 {

sim::Report simulate_quantize(const QuantizeParams& p, const sim::Options& options) {
  const int64_t x_elements = (p.rows - 1) * p.x_stride + p.k;
  const std::vector<sim::Buffer> buffers = {input(p.x, x_elements * bytes_of(p.x_type), "x"),
                                            {p.codes, size_t(p.rows * p.k), "codes", true},
                                            {p.scale, size_t(p.rows) * 4, "scale", true}};
  const sim::LaunchConfig config{{int(p.rows), 1, 1}, kQuantizeThreads, sizeof(QuantizeSmem)};
  const auto kernel = p.x_type == FloatType::kFloat32    ? quantize_kernel<float>
                      : p.x_type == FloatType::kBFloat16 ? quantize_kernel<__nv_bfloat16>
                                                         : quantize_kernel<__half>;
  return sim::launch(config, options, buffers, kernel, p);
}

sim::Report simulate_group_sums(const GroupSumsParams& p, const sim::Options& options) {
  const int64_t groups = (p.k + (1 << p.group_log2) - 1) >> p.group_log2;
  const std::vector<sim::Buffer> buffers = {input(p.x, (p.rows - 1) * p.x_stride + p.k, "x"),
                                            {p.sums, size_t(groups * p.pitch) * 4, "sums", true}};
  const sim::LaunchConfig config{{int(p.pitch / kSumsAlignment), 1, 1}, kSumsThreads, 0};
  return sim::launch(config, options, buffers, group_sums_kernel, p);
}

}  // namespace wlib::int4fp8
