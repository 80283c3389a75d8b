// The quantisers and fp8_group_sums: check their arguments, fill the parameters, pick CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>

#include <cmath>
#include <type_traits>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {
namespace {

#ifdef WLIB_HAS_CUDA
#define WLIB_LAUNCHER(function) function
#else
#define WLIB_LAUNCHER(function) nullptr  // declared, but not in this library
#endif

// Calls cpu(p) or cuda(p, ...), by the device of x.
template <class Params>
void dispatch(const Checker& check, const Params& p, const Tensor& x, void (*cpu)(const Params&),
              std::type_identity_t<const char* (*)(const Params&, int, void*)> cuda) {
  if (p.rows == 0) return;
  if (x.is_cpu()) return cpu(p);
  if (!cuda) check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
}

// x as rows of length k.
Rows parse_rows(const Checker& check, const Tensor& x, const char* argument) {
  const std::string name = argument;
  check.require(
      x.dim() >= 1, argument, [&] { return name + " of at least one dimension"; }, "a scalar");
  check.require(
      x.is_cpu() || x.is_cuda(), argument, [&] { return name + " on cpu or cuda"; },
      [&] { return Checker::device_text(x); });
  return rows_of(check, x, argument);
}

// Columns per sum, as a power of two, of a weight with groups of this size.
int parse_group(const Checker& check, int64_t group_size, int64_t k, const char* argument) {
  const int groups = int4::groups_per_tile(group_size, k);
  check.require(
      groups != 0, argument,
      [&] {
        return std::string(argument) +
               " of 32, 64, a multiple of 128 or k itself, dividing k=" + std::to_string(k) +
               " (a multiple of 32)";
      },
      group_size);
  return groups == 4 ? 5 : groups == 2 ? 6 : 7;
}

int64_t sums_pitch(int64_t rows) { return int4::ceil_div(rows, kSumsAlignment) * kSumsAlignment; }
Tensor new_sums(const Tensor& like, int64_t k, int group_log2, int64_t pitch) {
  const int64_t shape[] = {int4::ceil_div(k, int64_t(1) << group_log2), pitch};
  return new_empty(like, shape, ScalarType::Float);
}

// What all inputs have in common.
QuantizeParams parse(const Checker& check, const Tensor& x, const char* argument, RowInput input,
                     std::optional<int64_t> sums_group) {
  QuantizeParams p{};
  p.input = input;
  p.x_type = check.floating(x.scalar_type(), argument);
  const Rows rows = parse_rows(check, x, argument);
  const int64_t columns = sizes_of(x).back(), width = input == RowInput::kSiluMul ? 2 : 1;
  check.require(
      columns < int64_t(1) << 30, argument,
      [&] { return std::string(argument) + " of fewer than 2^30 columns"; }, columns);
  check.require(
      columns % width == 0, argument,
      [&] { return std::string(argument) + " of an even number of columns"; }, columns);
  p.rows = rows.count;
  p.k = columns / width;
  p.x_stride = rows.stride;
  p.row_warps = row_warps(p.k);
  p.x = x.const_data_ptr();
  if (sums_group) {
    p.group_log2 = parse_group(check, *sums_group, p.k, "sums_group");
    p.pitch = sums_pitch(p.rows);
  }
  return p;
}

void parse_weight(const Checker& check, const Tensor& x, const Tensor& weight, QuantizeParams& p) {
  const ScalarType type = weight.scalar_type();
  check.require(
      type == ScalarType::Float || type == x.scalar_type(), "weight",
      [&] {
        return std::string("weight of dtype torch.float32 or x's ") + dtype_name(x.scalar_type());
      },
      dtype_name(type));
  const int64_t expected[] = {p.k};
  check.shape(weight, "weight", expected);
  check.same_device(weight, "weight", x, "x");
  check.contiguous(weight, "weight");
  p.weight = weight.const_data_ptr();
  p.weight_type = *float_type(type);
}

void parse_residual(const Checker& check, const Tensor& x, const Tensor& residual,
                    QuantizeParams& p) {
  check.dtype(residual, "residual", x.scalar_type());
  check.shape(residual, "residual", sizes_of(x));
  check.same_device(residual, "residual", x, "x");
  p.residual_stride = rows_of(check, residual, "residual").stride;
  p.residual = residual.const_data_ptr();
}

// Allocates the outputs and fills them.
std::vector<Tensor> run(const Checker& check, QuantizeParams p, const Tensor& x, bool sums,
                        bool residual = false) {
  const auto sizes = sizes_of(x);
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = p.k;
  std::vector<Tensor> out = {new_empty(x, shape, ScalarType::Float8_e4m3fn),
                             new_empty(x, sizes.first(sizes.size() - 1), ScalarType::Float)};
  p.codes = static_cast<uint8_t*>(out[0].mutable_data_ptr());
  p.scale = static_cast<float*>(out[1].mutable_data_ptr());
  if (sums) {
    out.push_back(new_sums(x, p.k, p.group_log2, p.pitch));
    p.sums = static_cast<float*>(out.back().mutable_data_ptr());
  }
  if (residual) {
    out.push_back(new_empty(x, shape, x.scalar_type()));
    p.new_residual = out.back().mutable_data_ptr();
  }
  dispatch(check, p, x, quantize_cpu, WLIB_LAUNCHER(quantize_cuda));
  return out;
}

GroupSumsParams parse_sums(const Checker& check, const Tensor& xq, int64_t group_size) {
  GroupSumsParams p{};
  check.dtype(xq, "xq", ScalarType::Float8_e4m3fn);
  const Rows rows = parse_rows(check, xq, "xq");
  p.rows = rows.count;
  p.k = sizes_of(xq).back();
  p.x_stride = rows.stride;
  p.pitch = sums_pitch(p.rows);
  p.group_log2 = parse_group(check, group_size, p.k, "group_size");
  p.x = static_cast<const uint8_t*>(xq.const_data_ptr());
  if (xq.is_cuda() && xq.numel() > 0) {
    check.aligned(p.x, "xq", 16);
    check.require(p.x_stride % 16 == 0, "xq", "rows of xq a multiple of 16 elements apart",
                  p.x_stride);
  }
  return p;
}

}  // namespace

std::vector<Tensor> quantize(const Tensor& x, std::optional<int64_t> sums_group) {
  const Checker check("fp8_quantize");
  const QuantizeParams p = parse(check, x, "x", RowInput::kPlain, sums_group);
  return run(check, p, x, sums_group.has_value());
}

std::vector<Tensor> rms_norm_quantize(const Tensor& x, const Tensor& weight, double eps,
                                      std::optional<Tensor> residual,
                                      std::optional<int64_t> sums_group) {
  const Checker check("rms_norm_fp8_quantize");
  QuantizeParams p = parse(check, x, "x", RowInput::kRmsNorm, sums_group);
  parse_weight(check, x, weight, p);
  if (residual) parse_residual(check, x, *residual, p);
  p.eps = float(eps);
  check.require(p.eps >= 0 && std::isfinite(p.eps), "eps", "eps of at least 0 and finite", eps);
  return run(check, p, x, sums_group.has_value(), residual.has_value());
}

std::vector<Tensor> silu_mul_quantize(const Tensor& gate_up, bool interleaved,
                                      std::optional<int64_t> sums_group) {
  const Checker check("silu_mul_fp8_quantize");
  QuantizeParams p = parse(check, gate_up, "gate_up", RowInput::kSiluMul, sums_group);
  p.interleaved = interleaved;
  return run(check, p, gate_up, sums_group.has_value());
}

Tensor group_sums(const Tensor& xq, int64_t group_size) {
  const Checker check("fp8_group_sums");
  GroupSumsParams p = parse_sums(check, xq, group_size);
  const Tensor sums = new_sums(xq, p.k, p.group_log2, p.pitch);
  p.sums = static_cast<float*>(sums.mutable_data_ptr());
  dispatch(check, p, xq, group_sums_cpu, WLIB_LAUNCHER(group_sums_cuda));
  return sums;
}

}  // namespace wlib::int4fp8
