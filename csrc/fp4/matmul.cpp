// wlib::fp4_matmul: checks every argument, fills MatmulParams, picks CPU or CUDA.
#include "fp4/block_scaled_op.h"
#include "fp4/choices.h"
#ifdef WLIB_HAS_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif

#include "fp4/cpu.h"
#include "fp4/matmul_cuda.h"
#include "fp4/ops.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/scales_128x4.h"

namespace wlib::fp4 {
namespace {

struct Names {
  const char *values, *scale, *global;
};
constexpr Names kA = {"a", "a_scale", "a_global"}, kB = {"b", "b_scale", "b_global"};

// uint8 holds codes, FP8 a carrier.
Operand parse_operand(const Checker& check, const Tensor& t, const Tensor& scale,
                      const std::optional<Tensor>& global, const Names& names, const Tensor& like,
                      bool swizzled, int64_t* k) {
  Operand o{};
  const ScalarType type = t.scalar_type();
  const bool packed = type == ScalarType::Byte;
  o.carrier_type = packed                              ? Carrier::kNone
                   : type == ScalarType::Float8_e4m3fn ? Carrier::kE4M3
                                                       : Carrier::kE5M2;
  check.require(
      packed || type == ScalarType::Float8_e4m3fn || type == ScalarType::Float8_e5m2, names.values,
      std::string(names.values) + " of dtype torch.uint8, torch.float8_e4m3fn or torch.float8_e5m2",
      dtype_name(type));
  check.require(t.is_cpu() || t.is_cuda(), names.values,
                std::string(names.values) + " on cpu or cuda",
                [&] { return Checker::device_text(t); });
  check.require(t.dim() == 2, names.values, std::string(names.values) + " of shape [R, C]",
                [&] { return shape_text(t); });
  check.same_device(t, names.values, like, "a");
  check.contiguous(t, names.values);
  o.rows = sizes_of(t)[0];
  *k = sizes_of(t)[1] * (packed ? 2 : 1);
  const bool nv = global.has_value();
  check.require(packed || !nv, names.global, "no global scale for a carrier", names.global);
  const int block = nv ? kNvBlock : kMxBlock;
  check.require(*k % block == 0, names.values, "rows in multiples of " + std::to_string(block), *k);
  const std::vector<int64_t> shape =
      !packed    ? std::vector{o.rows}
      : swizzled ? std::vector{padded_scale_rows(o.rows), padded_scale_columns(*k / block)}
                 : std::vector{o.rows, *k / block};
  check.dtype(scale, names.scale,
              !packed ? ScalarType::Float
              : nv    ? ScalarType::Float8_e4m3fn
                      : ScalarType::Byte);
  check.shape(scale, names.scale, shape);
  check.same_device(scale, names.scale, like, "a");
  check.contiguous(scale, names.scale);
  if (nv) {
    check.dtype(*global, names.global, ScalarType::Float);
    check.shape(*global, names.global, {});
    check.same_device(*global, names.global, like, "a");
    o.packed.global_scale = static_cast<const float*>(global->const_data_ptr());
  }
  if (packed) {
    o.packed.codes = static_cast<const uint8_t*>(t.const_data_ptr());
    o.packed.scales = static_cast<const uint8_t*>(scale.const_data_ptr());
  } else {
    o.carrier = static_cast<const uint8_t*>(t.const_data_ptr());
    o.row_scale = static_cast<const float*>(scale.const_data_ptr());
  }
  return o;
}

void check_mode(const Checker& check, const MatmulParams& p) {
  const bool nv = p.a.packed.global_scale || p.b.packed.global_scale;
  const bool carriers = p.a.carrier_type != Carrier::kNone || p.b.carrier_type != Carrier::kNone;
  if (p.mode == MatmulMode::kFold8) check.require(!nv, "mode", "mode 'bf16' for nvfp4", "'fold8'");
  if (p.mode == MatmulMode::kExact32)
    check.require(!nv && !carriers, "mode", "packed mxfp4 for mode 'exact32'",
                  nv ? "nvfp4" : "a carrier");
  if (p.mode == MatmulMode::kBlockScaled)
    check.require(!carriers && !p.a.packed.global_scale == !p.b.packed.global_scale, "mode",
                  "packed operands of one format for mode 'block_scaled'",
                  carriers ? "a carrier" : "mxfp4 and nvfp4");
}

#ifdef WLIB_HAS_CUDA
// The kernels move 16 bytes at a time and count rows and columns in 32 bits.
void check_for_cuda(const Checker& check, const MatmulParams& p) {
  if (const char* refusal = refuse_matmul_cuda(p)) throw_cuda_error(check, refusal);
  const std::pair<const Operand&, const Names&> operands[] = {{p.a, kA}, {p.b, kB}};
  for (const auto& [o, names] : operands) {
    check.aligned(o.carrier ? o.carrier : o.packed.codes, names.values, 16);
    check.require(o.rows < INT32_MAX / 2, names.values, "fewer than 2^30 rows", o.rows);
  }
  check.require(p.k < INT32_MAX / 2, "a", "rows of fewer than 2^30 values", p.k);
}

void matmul_on_cuda(const Checker& check, const MatmulParams& p, const Tensor& a) {
  const int32_t device = a.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  // The tensor may go after the launch: the allocator reuses memory in stream order.
  const int64_t shape[] = {matmul_cuda_workspace(p)};
  const Tensor workspace = new_empty(a, shape, ScalarType::Byte);
  if (const char* error =
          matmul_cuda(p, workspace.mutable_data_ptr(), device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
}
#endif

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
              std::optional<Tensor> a_global, std::optional<Tensor> b_global, double alpha,
              Text mode, std::optional<ScalarType> out_dtype) {
  const Checker check("fp4_matmul");
  MatmulParams p{};
  int64_t b_k = 0;
  p.mode = choose(check, "mode", mode, kModes);
  const bool swizzled = p.mode == MatmulMode::kBlockScaled;
  p.a = parse_operand(check, a, a_scale, a_global, kA, a, swizzled, &p.k);
  p.b = parse_operand(check, b, b_scale, b_global, kB, a, swizzled, &b_k);
  check.require(
      p.k == b_k, "b", [&] { return "rows of " + std::to_string(p.k) + " values like a"; }, b_k);
  check_mode(check, p);
  p.alpha = float(alpha);
  const ScalarType type = out_dtype.value_or(ScalarType::BFloat16);
  p.out_type = check.floating(type, "out_dtype");
#ifdef WLIB_HAS_CUDA
  if (a.is_cuda() && !swizzled) check_for_cuda(check, p);
#else
  if (a.is_cuda()) check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
  if (swizzled) check_block_scaled(check, p);
  const int64_t shape[] = {p.a.rows, p.b.rows};
  const Tensor y = new_empty(a, shape, type);
  p.y = y.mutable_data_ptr();
  if (p.a.rows == 0 || p.b.rows == 0) return y;
  if (a.is_cpu())
    matmul_cpu(p, a);
  else if (swizzled)
    block_scaled_on_cuda(check, p, a);
#ifdef WLIB_HAS_CUDA
  else
    matmul_on_cuda(check, p, a);
#endif
  return y;
}

}  // namespace wlib::fp4
