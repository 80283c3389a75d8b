#include "int4fp8/gemm_arguments.h"

#include <algorithm>
#include <limits>

#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {
namespace {

constexpr const char* kSiluMul = "silu_mul";

int64_t experts_of(const GemmArguments& a) { return sizes_of(*a.expert_offsets)[0] - 1; }

// The packed weight tells by its size whether it holds zero points.
int4::Layout weight_layout(const Checker& check, const GemmArguments& a, int64_t k) {
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
  std::vector<int64_t> expected = {blocks, plain.block_bytes(k_tiles)};
  if (a.expert_offsets) expected.insert(expected.begin(), experts_of(a));
  const auto fits = [&](int4::Layout layout) {
    expected.back() = layout.block_bytes(k_tiles);
    return std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end());
  };
  if (fits(zeros)) return zeros;
  if (fits(plain)) return plain;
  check.refuse("weight",
               "weight of shape " + shape_text(expected) + " (or " +
                   std::to_string(zeros.block_bytes(k_tiles)) +
                   " columns with zero points) to match n=" + std::to_string(a.n) +
                   ", k=" + std::to_string(k) + ", group_size=" + std::to_string(a.group_size),
               shape_text(a.weight));
}

void check_x(const Checker& check, const GemmArguments& a) {
  check.dtype(a.x, "x", ScalarType::Float8_e4m3fn);
  if (a.expert_offsets) {
    check.require(a.x.dim() == 2, "x", "x of shape [T, K]", [&] { return shape_text(a.x); });
  }
  check.require(a.x.dim() >= 1, "x", "x of at least one dimension", "a scalar");
  check.require(a.x.is_cpu() || a.x.is_cuda(), "x", "x on cpu or cuda",
                [&] { return Checker::device_text(a.x); });
}

void check_weight(const Checker& check, const GemmArguments& a, GemmParams& p) {
  check.require(p.k < std::numeric_limits<int32_t>::max(), "x", "a last dimension below 2^31", p.k);
  const int4::Layout layout = weight_layout(check, a, p.k);
  p.groups_per_tile = layout.groups_per_tile;
  p.zero_points = layout.zero_points;
  check.same_device(a.weight, "weight", a.x, "x");
  check.contiguous(a.weight, "weight");
  p.weight = static_cast<const uint8_t*>(a.weight.const_data_ptr());
}

// Rows of x and what comes with them: one scale per token and, perhaps, sums over groups.
void check_tokens(const Checker& check, const GemmArguments& a, GemmParams& p) {
  const Rows rows = rows_of(check, a.x, "x");
  p.m = rows.count;
  p.x_stride = rows.stride;
  p.x = static_cast<const uint8_t*>(a.x.const_data_ptr());
  const auto x_sizes = sizes_of(a.x);
  check.tensor(a.x_scale, "x_scale", x_sizes.first(x_sizes.size() - 1), a.x, "x");
  p.x_scale = static_cast<const float*>(a.x_scale.const_data_ptr());
  if (!a.x_sums) return;
  check.dtype(*a.x_sums, "x_sums", ScalarType::Float);
  const int64_t columns = std::min<int64_t>({a.group_size, int4::kTileColumns, p.k});
  const int64_t groups = columns ? int4::ceil_div(p.k, columns) : 0;
  p.x_sums_pitch = int4::ceil_div(p.m, kSumsAlignment) * kSumsAlignment;
  const int64_t expected[] = {groups, p.x_sums_pitch};
  check.tensor(*a.x_sums, "x_sums", expected, a.x, "x");
  p.x_sums = static_cast<const float*>(a.x_sums->const_data_ptr());
}

void check_output(const Checker& check, const GemmArguments& a, ScalarType out_dtype,
                  const char* out_argument, Epilogue& e) {
  if (out_dtype == ScalarType::Float8_e4m3fn) {
    check.require(a.out_scale.has_value(), "out_scale",
                  "out_scale with torch.float8_e4m3fn outputs", "none");
    check.dtype(*a.out_scale, "out_scale", ScalarType::Float);
    check.tensor(*a.out_scale, "out_scale", {}, a.x, "x");
    e.out_scale = static_cast<const float*>(a.out_scale->const_data_ptr());
    e.out_type = FloatType::kE4M3;
    return;
  }
  const auto type = float_type(out_dtype);
  check.require(
      type.has_value(), out_argument,
      [&] {
        return std::string(out_argument) + " of dtype torch.float32, torch.bfloat16, " +
               "torch.float16 or torch.float8_e4m3fn";
      },

      dtype_name(out_dtype));
  check.require(
      !a.out_scale, out_argument,
      [&] { return std::string(out_argument) + " of dtype torch.float8_e4m3fn with out_scale"; },

      dtype_name(out_dtype));
  e.out_type = *type;
}

Epilogue check_epilogue(const Checker& check, const GemmArguments& a, ScalarType out_dtype,
                        const char* out_argument) {
  Epilogue e{};
  check.require(a.activation == "none" || a.activation == kSiluMul, "activation",
                "activation 'none' or 'silu_mul'", [&] { return "'" + a.activation + "'"; });
  if (a.activation == kSiluMul) {
    check.require(a.n % 2 == 0, "n", "an even n, rows of gate and up in turn", a.n);
    e.activation = Activation::kSiluMul;
  }
  check_output(check, a, out_dtype, out_argument, e);
  if (a.bias) {
    e.bias_type = check.floating(a.bias->scalar_type(), "bias");
    std::vector<int64_t> expected = {a.n};
    if (a.expert_offsets) expected.insert(expected.begin(), experts_of(a));
    check.tensor(*a.bias, "bias", expected, a.x, "x");
    e.bias = a.bias->const_data_ptr();
  }
  if (a.residual) {
    e.residual_type = check.floating(a.residual->scalar_type(), "residual");
    check.tensor(*a.residual, "residual", a.out_shape(), a.x, "x");
    e.residual = a.residual->const_data_ptr();
  }
  return e;
}

// Where each expert's tokens begin. Their values are on the device; the CPU looks at them.
void check_experts(const Checker& check, const GemmArguments& a, GemmParams& p) {
  const Tensor& offsets = *a.expert_offsets;
  const ScalarType type = offsets.scalar_type();
  check.require(type == ScalarType::Int || type == ScalarType::Long, "expert_offsets",
                "expert_offsets of dtype torch.int32 or torch.int64", dtype_name(type));
  check.require(
      offsets.dim() == 1 && offsets.numel() >= 2 && offsets.numel() <= kMaxExperts + 1,
      "expert_offsets",
      [] {
        return "expert_offsets of shape [E + 1] for 1 to " + std::to_string(kMaxExperts) +
               " experts";
      },
      [&] { return shape_text(offsets); });
  check.same_device(offsets, "expert_offsets", a.x, "x");
  check.contiguous(offsets, "expert_offsets");
  p.expert_offsets = offsets.const_data_ptr();
  p.wide_offsets = type == ScalarType::Long;
  p.experts = experts_of(a);
}

// They rise from 0 to the number of tokens.
void check_offsets(const Checker& check, const GemmParams& p) {
  int64_t last = 0;
  for (int64_t e = 0; e <= p.experts; ++e) {
    const int64_t offset = p.expert_offset(e);
    const bool ok = e == 0 ? offset == 0 : e == p.experts ? offset == p.m : offset <= p.m;
    check.require(
        ok && offset >= last, "expert_offsets",
        [&] { return "expert_offsets that rise from 0 to T=" + std::to_string(p.m); },
        [&] { return std::to_string(offset) + " at " + std::to_string(e); });
    last = offset;
  }
}

// Bulk copies of the weight, tensor copies of x and its sums, and outputs in pairs.
void check_alignment(const Checker& check, const GemmParams& p) {
  check.aligned(p.weight, "weight", 128);
  if (p.m > 0) check.aligned(p.x, "x", 16);
  check.require(p.x_stride % 16 == 0 && (p.x_stride > 0 || p.m == 0 || p.k == 0), "x",
                "rows of x a positive multiple of 16 elements apart", p.x_stride);
  check.aligned(p.x_sums, "x_sums", 16);
  check.aligned(p.epilogue.residual, "residual", 16);
}

int64_t bytes_of(const Tensor& t) { return t.numel() * int64_t(t.element_size()); }

}  // namespace

std::vector<int64_t> GemmArguments::out_shape() const {
  const auto x_sizes = sizes_of(x);
  std::vector<int64_t> shape(x_sizes.begin(), x_sizes.end());
  shape.back() = activation == kSiluMul ? n / 2 : n;
  return shape;
}

GemmParams check_arguments(const Checker& check, const GemmArguments& a, ScalarType out_dtype,
                           const char* out_argument) {
  check.require(
      a.layout_version == int4::kLayoutVersion, "layout_version",
      [] {
        return "layout_version " + std::to_string(int4::kLayoutVersion) +
               " (pack the weight with this version of wlib)";
      },
      a.layout_version);
  GemmParams p{};
  check_x(check, a);
  if (a.expert_offsets) check_experts(check, a, p);
  check.require(a.n >= 1 && a.n < std::numeric_limits<int32_t>::max(), "n",
                "n of at least 1 and below 2^31", a.n);
  check.dtype(a.weight, "weight", ScalarType::Byte);
  check.dtype(a.x_scale, "x_scale", ScalarType::Float);
  p.n = a.n;
  p.k = sizes_of(a.x).back();
  check_weight(check, a, p);
  check_tokens(check, a, p);
  if (a.expert_offsets && a.x.is_cpu()) check_offsets(check, p);
  p.epilogue = check_epilogue(check, a, out_dtype, out_argument);
  if (a.x.is_cuda()) check_alignment(check, p);
  return p;
}

void check_out(const Checker& check, const GemmArguments& a, const Tensor& out) {
  check.tensor(out, "out", a.out_shape(), a.x, "x");
  if (out.is_cuda()) check.aligned(out.const_data_ptr(), "out", 16);
  if (!a.residual) return;
  const auto start = reinterpret_cast<uintptr_t>(out.const_data_ptr()),
             other = reinterpret_cast<uintptr_t>(a.residual->const_data_ptr());
  const bool same = start == other && out.scalar_type() == a.residual->scalar_type();
  const bool apart = start + bytes_of(out) <= other || other + bytes_of(*a.residual) <= start;
  check.require(same || apart, "residual", "residual to be out itself or to lie apart from it",
                "tensors that overlap");
}

}  // namespace wlib::int4fp8
