// wlib::atoms_linear: checks every argument, fills the parameters, picks CPU or CUDA.
#include "atoms/linear.h"

#include <vector>

#include "atoms/arguments.h"
#include "torch/empty.h"

namespace wlib::atoms {
namespace {

// Sizes that x [M, K], atoms [S, N, K] and coef [S] or [M, S] agree on.
void check_sizes(const Checker& check, const Tensor& x, const Tensor& atoms, const Tensor& coef,
                 LinearParams& p) {
  check.require(x.dim() == 2, "x", "x of shape [M, K]", [&] { return shape_text(x); });
  check.require(x.is_cpu() || x.is_cuda(), "x", "x on cpu or cuda",
                [&] { return Checker::device_text(x); });
  p.tokens = x.size(0);
  p.columns = x.size(1);
  check.contiguous(x, "x");
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

}  // namespace

Tensor linear(const Tensor& x, const Tensor& atoms, const Tensor& coef, std::optional<Tensor> bias,
              std::optional<Tensor> base) {
  const Checker check("atoms_linear");
  LinearParams p{};
  p.type = summed_type(check, x, "x");
  check_sizes(check, x, atoms, coef, p);
  p.x = x.const_data_ptr();
  p.atoms = check_like_x(check, atoms, "atoms", {p.num_atoms, p.rows, p.columns}, x);
  check_coefficient(check, p.type, coef);
  check.same_device(coef, "coef", x, "x");
  p.coef = coef.const_data_ptr();
  if (bias) p.bias = check_like_x(check, *bias, "bias", {p.rows}, x);
  if (base) p.base = check_like_x(check, *base, "base", {p.rows, p.columns}, x);
  if (x.is_cuda()) check.no_kernel("device cuda (rows: cpu)");
  const std::vector<int64_t> shape = {p.tokens, p.rows};
  const Tensor out = new_empty(x, shape, x.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() == 0) return out;
  linear_cpu(p, x);
  return out;
}

}  // namespace wlib::atoms
