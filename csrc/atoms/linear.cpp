// wlib::atoms_linear: checks every argument, fills the parameters, picks CPU or CUDA.
#include "atoms/linear.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <vector>

#include "atoms/arguments.h"
#include "atoms/linear_cuda.h"
#include "atoms/linear_plan.h"
#include "atoms/reconstruct_cuda.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_tile.h"

namespace wlib::atoms {
namespace {

// How INT4 atoms were packed, which nothing but these arguments tells.
struct Packed {
  std::optional<int64_t> n, group_size;
  int64_t layout_version;
};

// Fills rows, num_atoms and int4_groups.
void check_packed(const Checker& check, const Tensor& atoms, const Packed& packed,
                  LinearParams& p) {
  check.require(packed.n && packed.group_size, packed.n ? "n" : "group_size",
                "n and group_size, or neither", packed.n ? "n alone" : "group_size alone");
  check.require(
      packed.layout_version == int4::kLayoutVersion, "layout_version",
      [] {
        return "layout_version " + std::to_string(int4::kLayoutVersion) +
               " (pack the atoms with this version of wlib)";
      },
      packed.layout_version);
  p.rows = *packed.n;
  check.require(p.rows >= 1 && p.rows < INT32_MAX, "n", "n of at least 1 and below 2^31", p.rows);
  p.int4_groups = int4::groups_per_tile(*packed.group_size, p.columns);
  check.require(
      p.int4_groups != 0, "group_size",
      [&] {
        return "group_size of 32, 64, a multiple of 128 or k itself, dividing k=" +
               std::to_string(p.columns) + " (a multiple of 32)";
      },
      *packed.group_size);
  const int64_t blocks = int4::ceil_div(p.rows, int4::kTileRows);
  const int64_t bytes =
      int4::Layout{p.int4_groups, false}.block_bytes(int4::ceil_div(p.columns, int4::kTileColumns));
  const bool fits = atoms.dim() == 3 && atoms.size(0) >= 1 && atoms.size(0) <= kMaxArrays &&
                    atoms.size(1) == blocks && atoms.size(2) == bytes;
  check.require(
      fits, "atoms",
      [&] {
        return "atoms of shape [S, " + std::to_string(blocks) + ", " + std::to_string(bytes) +
               "] with 1 to 32768 atoms, packed without zero points, to match n=" +
               std::to_string(p.rows) + ", k=" + std::to_string(p.columns) +
               ", group_size=" + std::to_string(*packed.group_size);
      },
      [&] { return shape_text(atoms); });
  p.num_atoms = atoms.size(0);
}

// Sizes that x [M, K], atoms [S, N, K] and coef [S] or [M, S] agree on.
void check_sizes(const Checker& check, const Tensor& x, const Tensor& atoms, const Tensor& coef,
                 const Packed& packed, LinearParams& p) {
  check.require(x.dim() == 2, "x", "x of shape [M, K]", [&] { return shape_text(x); });
  check.require(x.is_cpu() || x.is_cuda(), "x", "x on cpu or cuda",
                [&] { return Checker::device_text(x); });
  p.tokens = x.size(0);
  p.columns = x.size(1);
  check.contiguous(x, "x");
  if (packed.n || packed.group_size) {
    check_packed(check, atoms, packed, p);
  } else {
    const bool fits = atoms.dim() == 3 && atoms.size(2) == p.columns && atoms.size(0) >= 1 &&
                      atoms.size(0) <= kMaxArrays;
    check.require(
        fits, "atoms",
        [&] {
          return "atoms of shape [S, N, " + std::to_string(p.columns) + "] with 1 to 32768 atoms";
        },
        [&] { return shape_text(atoms); });
    p.num_atoms = atoms.size(0);
    p.rows = atoms.size(1);
  }
  const auto coef_shape = sizes_of(coef);
  const std::vector<int64_t> shared = {p.num_atoms}, own = {p.tokens, p.num_atoms};
  const auto is = [&](const std::vector<int64_t>& shape) {
    return std::equal(shape.begin(), shape.end(), coef_shape.begin(), coef_shape.end());
  };
  check.require(
      is(shared) || is(own), "coef",
      [&] { return "coef of shape " + shape_text(shared) + " or " + shape_text(own); },
      [&] { return shape_text(coef); });
  p.coef_per_token = coef.dim() == 2;
}

const void* check_like_x(const Checker& check, const Tensor& t, const char* argument,
                         const std::vector<int64_t>& shape, const Tensor& x) {
  check.dtype(t, argument, x.scalar_type());
  check.tensor(t, argument, shape, x, "x");
  return t.const_data_ptr();
}

#ifdef WLIB_HAS_CUDA
// Up to so many tokens the atoms are multiplied one by one. By counted bytes that takes less time
// than making the weight up to 184 (S + 2) / (S - 1) tokens, but in one read of the atoms only as
// many as a tile holds.
constexpr int64_t kMostTokens = kLinear16Tile.tokens;

// What the kernel that multiplies atoms takes (linear_cuda.h).
bool has_kernel(const LinearParams& p) {
  const int64_t step = p.atom_type == FloatType::kE4M3 ? 16 : 8;
  return p.type != FloatType::kFloat32 && p.columns > 0 && p.columns % step == 0 &&
         std::max({p.tokens, p.columns, p.num_atoms * p.rows}) < INT32_MAX - kLinear4Tile.rows;
}
// The weight is made of atoms of floats; of INT4 atoms it would first take those.
bool has_other_route(const LinearParams& p) { return !p.coef_per_token && !p.int4_groups; }
bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// out = x weight^T + bias. The .out form, because autocast would change the functional one's type.
void matmul_with_bias(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(x), from(weight), from(bias), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // drops the returned reference
}

void linear_on_cuda(const Checker& check, LinearParams p, const Tensor& x, const Tensor& atoms,
                    const std::optional<Tensor>& bias, const Tensor& out) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = current_cuda_stream(device);
  const bool fits = has_kernel(p) && aligned(p.x) && aligned(p.atoms) && aligned(p.base);
  if (!has_other_route(p) || (fits && p.tokens <= kMostTokens)) {
    const int64_t size[] = {linear_partials(p)};
    const Tensor partials = new_empty(x, size, ScalarType::Float);
    const char* error =
        linear_cuda(p, static_cast<float*>(partials.mutable_data_ptr()), device, stream);
    if (error) throw_cuda_error(check, error);
    return;
  }
  // The weight is made of atoms of one type; this converts FP8 ones, exactly.
  const Tensor same_type =
      p.atom_type == p.type ? atoms : torch::stable::to(atoms, x.scalar_type());
  p.atoms = same_type.const_data_ptr();
  p.atom_type = p.type;
  const int64_t shape[] = {p.rows, p.columns};
  const Tensor weight = new_empty(x, shape, x.scalar_type());
  const WeightSum sum(p, weight.mutable_data_ptr(), p.type);
  if (const char* error = reconstruct_cuda(sum.params, device, stream))
    throw_cuda_error(check, error);
  matmul_with_bias(x, weight, bias, out);
}

void check_for_cuda(const Checker& check, const LinearParams& p) {
  if (has_other_route(p)) return;
  if (!has_kernel(p)) {
    if (p.int4_groups)
      check.no_kernel("INT4 atoms with x of this dtype or size on cuda (rows: 16-bit types)");
    check.no_kernel(
        "coefficients per token with x of this dtype and K = " + std::to_string(p.columns) +
        " on cuda (rows: 16-bit types, K a multiple of 8, of 16 for FP8 atoms)");
  }
  check.aligned(p.x, "x", 16);
  check.aligned(p.atoms, "atoms", 16);
  check.aligned(p.base, "base", 16);
}
#endif

}  // namespace

WeightSum::WeightSum(const LinearParams& p, void* weight, FloatType type)
    : atoms_(p.num_atoms), weight_(weight) {
  const int64_t bytes = p.rows * p.columns * int64_t(bytes_of(p.atom_type));
  for (int64_t s = 0; s < p.num_atoms; ++s)
    atoms_[s] = static_cast<const char*>(p.atoms) + s * bytes;
  params.atom = atoms_.data();
  params.out = &weight_;
  params.coef = p.coef;
  params.base = p.base;
  params.num_layers = 1;
  params.num_atoms = p.num_atoms;
  params.rows = p.rows;
  params.columns = p.columns;
  params.scale = 1;
  params.atom_type = p.atom_type;
  params.base_type = p.type;
  params.out_type = type;
}

Tensor linear(const Tensor& x, const Tensor& atoms, const Tensor& coef, std::optional<Tensor> bias,
              std::optional<Tensor> base, std::optional<int64_t> n,
              std::optional<int64_t> group_size, int64_t layout_version) {
  const Checker check("atoms_linear");
  LinearParams p{};
  p.type = summed_type(check, x, "x");
  check_sizes(check, x, atoms, coef, {n, group_size, layout_version}, p);
  p.x = x.const_data_ptr();
  const bool fp8 = atoms.scalar_type() == ScalarType::Float8_e4m3fn && !p.int4_groups;
  p.atom_type = fp8 && p.type != FloatType::kFloat64 ? FloatType::kE4M3 : p.type;
  if (p.atom_type == p.type)
    check.dtype(atoms, "atoms", p.int4_groups ? ScalarType::Byte : x.scalar_type());
  check.same_device(atoms, "atoms", x, "x");
  check.contiguous(atoms, "atoms");
  p.atoms = atoms.const_data_ptr();
  check_coefficient(check, p.type, coef);
  check.same_device(coef, "coef", x, "x");
  p.coef = coef.const_data_ptr();
  if (bias) p.bias = check_like_x(check, *bias, "bias", {p.rows}, x);
  if (base) p.base = check_like_x(check, *base, "base", {p.rows, p.columns}, x);
#ifdef WLIB_HAS_CUDA
  if (x.is_cuda()) check_for_cuda(check, p);
#else
  if (x.is_cuda()) check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
  const std::vector<int64_t> shape = {p.tokens, p.rows};
  const Tensor out = new_empty(x, shape, x.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() == 0) return out;
  if (x.is_cpu()) linear_cpu(p, x);
#ifdef WLIB_HAS_CUDA
  else
    linear_on_cuda(check, p, x, atoms, bias, out);
#endif
  return out;
}

}  // namespace wlib::atoms
