// wlib::int4fp8_gemm and wlib::int4fp8_gemm_grouped: check every argument, then pick CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/gemm_arguments.h"
#include "int4fp8/ops.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {
namespace {

#ifdef WLIB_HAS_CUDA
// Fills p.x_sums. Its tensor may go after the launch: the allocator reuses memory in stream order.
Tensor sum_groups(const Checker& check, const Tensor& x, GemmParams& p, int32_t device) {
  GroupSumsParams g{};
  g.x = p.x;
  g.rows = p.m;
  g.k = p.k;
  g.x_stride = p.x_stride;
  g.pitch = int4::ceil_div(p.m, kSumsAlignment) * kSumsAlignment;
  g.group_log2 = p.groups_per_tile == 1 ? 7 : p.groups_per_tile == 2 ? 6 : 5;
  const int64_t shape[] = {int4::ceil_div(p.k, int64_t(1) << g.group_log2), g.pitch};
  const Tensor sums = new_empty(x, shape, ScalarType::Float);
  g.sums = static_cast<float*>(sums.mutable_data_ptr());
  p.x_sums = g.sums;
  p.x_sums_pitch = g.pitch;
  if (const char* error = group_sums_cuda(g, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return sums;
}
#endif

void run(const Checker& check, const Tensor& x, GemmParams p, const Tensor& out) {
  if (p.m == 0) return;
  p.epilogue.y = out.mutable_data_ptr();
  if (x.is_cpu()) return p.expert_offsets ? gemm_grouped_cpu(p, x) : gemm_cpu(p, x);
#ifdef WLIB_HAS_CUDA
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::optional<Tensor> sums;
  if (gemm_cuda_wants_sums(p)) sums = sum_groups(check, x, p, device);
  if (const char* error = gemm_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace

Tensor gemm(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
            int64_t group_size, std::optional<Tensor> bias, std::optional<Tensor> residual,
            Text activation, std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
            std::optional<ScalarType> out_dtype, int64_t layout_version, bool prefetch_weight) {
  const Checker check("int4fp8_gemm");
  const GemmArguments a{x,        weight,     x_scale,   n,      group_size,    bias,
                        residual, activation, out_scale, x_sums, layout_version};
  const ScalarType type = out_dtype.value_or(ScalarType::BFloat16);
  GemmParams p = check_arguments(check, a, type, "out_dtype");
  p.prefetch_weight = prefetch_weight;
  const Tensor out = new_empty(x, a.out_shape(), type);
  run(check, x, p, out);
  return out;
}

void gemm_out(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
              int64_t group_size, std::optional<Tensor> bias, std::optional<Tensor> residual,
              Text activation, std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
              int64_t layout_version, bool prefetch_weight, const Tensor& out) {
  const Checker check("int4fp8_gemm");
  const GemmArguments a{x,        weight,     x_scale,   n,      group_size,    bias,
                        residual, activation, out_scale, x_sums, layout_version};
  GemmParams p = check_arguments(check, a, out.scalar_type(), "out");
  p.prefetch_weight = prefetch_weight;
  check_out(check, a, out);
  run(check, x, p, out);
}

Tensor gemm_grouped(const Tensor& x, const Tensor& weight, const Tensor& x_scale,
                    const Tensor& expert_offsets, int64_t n, int64_t group_size,
                    std::optional<Tensor> bias, std::optional<Tensor> residual, Text activation,
                    std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
                    std::optional<ScalarType> out_dtype, int64_t layout_version) {
  const Checker check("int4fp8_gemm_grouped");
  const GemmArguments a{x,        weight,     x_scale,   n,      group_size,     bias,
                        residual, activation, out_scale, x_sums, layout_version, &expert_offsets};
  const ScalarType type = out_dtype.value_or(ScalarType::BFloat16);
  const GemmParams p = check_arguments(check, a, type, "out_dtype");
  const Tensor out = new_empty(x, a.out_shape(), type);
  run(check, x, p, out);
  return out;
}

void gemm_grouped_out(const Tensor& x, const Tensor& weight, const Tensor& x_scale,
                      const Tensor& expert_offsets, int64_t n, int64_t group_size,
                      std::optional<Tensor> bias, std::optional<Tensor> residual, Text activation,
                      std::optional<Tensor> out_scale, std::optional<Tensor> x_sums,
                      int64_t layout_version, const Tensor& out) {
  const Checker check("int4fp8_gemm_grouped");
  const GemmArguments a{x,        weight,     x_scale,   n,      group_size,     bias,
                        residual, activation, out_scale, x_sums, layout_version, &expert_offsets};
  const GemmParams p = check_arguments(check, a, out.scalar_type(), "out");
  check_out(check, a, out);
  run(check, x, p, out);
}

}  // namespace wlib::int4fp8
