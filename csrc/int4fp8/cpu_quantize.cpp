// The quantiser and the group sums on the CPU, a row at a time.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "int4fp8/cpu.h"
#include "int4fp8/cpu_kernels.h"
#include "torch/cpu_types.h"

namespace wlib::int4fp8 {

void quantize_cpu(const QuantizeParams& p) {
  const CpuKernels& kernels = cpu_kernels();
  torch::stable::parallel_for(0, p.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(p.k);
    for (int64_t r = begin; r < end; ++r) {
      to_float(p.x, p.x_type, r * p.x_stride, p.k, row.data());
      p.scale[r] = kernels.quantize_row(row.data(), p.k, p.codes + r * p.k);
    }
  });
}

void group_sums_cpu(const GroupSumsParams& p) {
  torch::stable::parallel_for(0, p.rows, kSumsAlignment, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      cpu_kernels().group_sums_row(p.x + r * p.x_stride, p.k, p.group_log2, p.sums + r, p.pitch);
    }
  });
  for (int64_t g = 0; g << p.group_log2 < p.k; ++g)
    std::fill(p.sums + g * p.pitch + p.rows, p.sums + (g + 1) * p.pitch, 0.0f);
}

}  // namespace wlib::int4fp8
