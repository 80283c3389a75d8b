// wlib::int4fp8_gemm: checks every argument, fills GemmParams, picks CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {
namespace {

using torch::headeronly::ScalarType;

struct Arguments {
  const Tensor &x, &weight, &x_scale;
  int64_t n, group_size;
  const std::optional<Tensor>& bias;
  int64_t layout_version;
};

// The packed weight tells by its size whether it holds zero points.
int4::Layout weight_layout(const Checker& check, const Arguments& a, int64_t k) {
  const int groups = int4::groups_per_tile(a.group_size, k);
  check.require(
      groups != 0, "group_size",
      [&] {
        return "group_size of 32, 64, a multiple of 128 or k itself, dividing k=" +
               std::to_string(k) + " (a multiple of 32)";
      },
      a.group_size);
  const int64_t blocks = int4::ceil_div(a.n, int4::kTileRows),
                k_tiles = int4::ceil_div(k, int4::kTileColumns);
  const int4::Layout plain{groups, false}, zeros{groups, true};
  const auto sizes = sizes_of(a.weight);
  const bool two = sizes.size() == 2 && sizes[0] == blocks;
  if (two && sizes[1] == plain.block_bytes(k_tiles)) return plain;
  if (two && sizes[1] == zeros.block_bytes(k_tiles)) return zeros;
  const int64_t expected[] = {blocks, plain.block_bytes(k_tiles)};
  check.refuse("weight",
               "weight of shape " + shape_text(expected) + " (or " +
                   std::to_string(zeros.block_bytes(k_tiles)) +
                   " columns with zero points) to match n=" + std::to_string(a.n) +
                   ", k=" + std::to_string(k) + ", group_size=" + std::to_string(a.group_size),
               shape_text(a.weight));
}

void check_x(const Checker& check, const Arguments& a) {
  check.dtype(a.x, "x", ScalarType::Float8_e4m3fn);
  check.require(a.x.dim() >= 1, "x", "x of at least one dimension", "a scalar");
  check.require(a.x.is_cpu() || a.x.is_cuda(), "x", "x on cpu or cuda",
                [&] { return Checker::device_text(a.x); });
}

GemmParams parse(const Checker& check, const Arguments& a, ScalarType out_dtype) {
  check.require(
      a.layout_version == int4::kLayoutVersion, "layout_version",
      [] {
        return "layout_version " + std::to_string(int4::kLayoutVersion) +
               " (pack the weight with this version of wlib)";
      },
      a.layout_version);
  check_x(check, a);
  check.require(a.n >= 1 && a.n < std::numeric_limits<int32_t>::max(), "n",
                "n of at least 1 and below 2^31", a.n);
  check.dtype(a.weight, "weight", ScalarType::Byte);
  check.dtype(a.x_scale, "x_scale", ScalarType::Float);

  GemmParams p{};
  const auto x_sizes = sizes_of(a.x);
  p.n = a.n;
  p.k = x_sizes.back();
  check.require(p.k < std::numeric_limits<int32_t>::max(), "x", "a last dimension below 2^31", p.k);
  const int4::Layout layout = weight_layout(check, a, p.k);
  p.groups_per_tile = layout.groups_per_tile;
  p.zero_points = layout.zero_points;
  check.same_device(a.weight, "weight", a.x, "x");
  check.contiguous(a.weight, "weight");

  const Rows rows = rows_of(check, a.x, "x");
  p.m = rows.count;
  p.x_stride = rows.stride;
  check.shape(a.x_scale, "x_scale", x_sizes.first(x_sizes.size() - 1));
  check.same_device(a.x_scale, "x_scale", a.x, "x");
  check.contiguous(a.x_scale, "x_scale");
  if (a.bias) {
    const ScalarType type = a.bias->scalar_type();
    check.require(
        type == ScalarType::Float || type == out_dtype, "bias",
        [&] {
          return std::string("bias of dtype torch.float32 or the output's ") +
                 dtype_name(out_dtype);
        },
        dtype_name(type));
    const int64_t expected[] = {a.n};
    check.shape(*a.bias, "bias", expected);
    check.same_device(*a.bias, "bias", a.x, "x");
    check.contiguous(*a.bias, "bias");
    p.bias = a.bias->const_data_ptr();
    p.bias_type = *float_type(type);
  }
  p.out_type = check.floating(out_dtype, "out_dtype");
  p.x = static_cast<const uint8_t*>(a.x.const_data_ptr());
  p.weight = static_cast<const uint8_t*>(a.weight.const_data_ptr());
  p.x_scale = static_cast<const float*>(a.x_scale.const_data_ptr());
  if (a.x.is_cuda()) {
    check.aligned(p.weight, "weight", 128);  // bulk copies
    if (p.m > 0) check.aligned(p.x, "x", 16);
    check.require(p.x_stride % 16 == 0 && (p.x_stride > 0 || p.m == 0 || p.k == 0), "x",
                  "rows of x a positive multiple of 16 elements apart", p.x_stride);
  }
  return p;
}

void run(const Checker& check, const Arguments& a, GemmParams p, const Tensor& out) {
  if (p.m == 0) return;
  p.y = out.mutable_data_ptr();
  if (a.x.is_cpu()) return gemm_cpu(p, a.x);
#ifdef WLIB_HAS_CUDA
  const int32_t device = a.x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = gemm_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

std::vector<int64_t> out_shape(const Arguments& a) {
  const auto x_sizes = sizes_of(a.x);
  std::vector<int64_t> shape(x_sizes.begin(), x_sizes.end());
  shape.back() = a.n;
  return shape;
}

}  // namespace

Tensor gemm(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
            int64_t group_size, std::optional<Tensor> bias, std::optional<ScalarType> out_dtype,
            int64_t layout_version) {
  const Checker check("int4fp8_gemm");
  const Arguments a{x, weight, x_scale, n, group_size, bias, layout_version};
  const ScalarType type = out_dtype.value_or(ScalarType::BFloat16);
  const GemmParams p = parse(check, a, type);
  const Tensor out = new_empty(x, out_shape(a), type);
  run(check, a, p, out);
  return out;
}

void gemm_out(const Tensor& x, const Tensor& weight, const Tensor& x_scale, int64_t n,
              int64_t group_size, std::optional<Tensor> bias, int64_t layout_version,
              const Tensor& out) {
  const Checker check("int4fp8_gemm");
  const Arguments a{x, weight, x_scale, n, group_size, bias, layout_version};
  check.floating(out.scalar_type(), "out");
  const GemmParams p = parse(check, a, out.scalar_type());
  check.shape(out, "out", out_shape(a));
  check.same_device(out, "out", x, "x");
  check.contiguous(out, "out");
  if (out.is_cuda()) check.aligned(out.const_data_ptr(), "out", 16);  // stored in pairs
  run(check, a, p, out);
}

}  // namespace wlib::int4fp8
