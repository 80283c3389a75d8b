// wlib::atoms_reconstruct and its backward: check every argument, fill the parameters, pick CPU or
// CUDA.
#include <torch/csrc/stable/accelerator.h>

#include <cmath>

#include "atoms/arguments.h"
#include "atoms/cpu.h"
#include "atoms/ops.h"
#include "atoms/reconstruct_cuda.h"
#include "torch/empty.h"
#include "torch/stream.h"

namespace wlib::atoms {
namespace {

// Sizes that atoms [S, rows, ...] and coef [L, S] or [L, S, rows] agree on.
struct Sizes {
  int64_t layers, atoms, rows, columns;
  bool per_row;
  std::vector<int64_t> weights;  // [L, rows, ...]
  int64_t size() const { return rows * columns; }
};

Sizes check_sizes(const Checker& check, const Tensor& atoms, const Tensor& coef) {
  const auto shape = sizes_of(atoms);
  const auto coef_shape = sizes_of(coef);
  const auto any = [](int64_t n) { return n >= 1 && n <= kMaxArrays; };
  check.require(shape.size() >= 2 && any(shape[0]), "atoms",
                "atoms of shape [S, rows, ...] with 1 to 32768 atoms",
                [&] { return shape_text(atoms); });
  check.require(atoms.is_cpu() || atoms.is_cuda(), "atoms", "atoms on cpu or cuda",
                [&] { return Checker::device_text(atoms); });
  check.contiguous(atoms, "atoms");
  const bool plain = coef_shape.size() == 2;
  const bool per_row = coef_shape.size() == 3 && coef_shape[2] == shape[1];
  check.require((plain || per_row) && any(coef_shape[0]) && coef_shape[1] == shape[0], "coef",
                [&] {
                  const std::string s = std::to_string(shape[0]);
                  return "coef of shape [L, " + s + "] or [L, " + s + ", " +
                         std::to_string(shape[1]) + "] to match atoms " + shape_text(atoms);
                },
                [&] { return shape_text(coef); });
  check.same_device(coef, "coef", atoms, "atoms");

  Sizes s{coef_shape[0], shape[0], shape[1], 1, per_row, {shape.begin(), shape.end()}};
  for (size_t i = 2; i < shape.size(); ++i) s.columns *= shape[i];
  s.weights[0] = s.layers;
  return s;
}

// The pointers to the arrays of [count, size].
template <class Void>
std::vector<Void*> pointers(Void* data, int64_t count, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  std::vector<Void*> all(count);
  for (int64_t i = 0; i < count; ++i) all[i] = static_cast<Byte*>(data) + i * bytes;
  return all;
}

void check_residual(const Checker& check, const Sizes& s, const std::optional<Tensor>& a,
                    const std::optional<Tensor>& b, const Tensor& atoms, ReconstructParams* p) {
  if (!a && !b) return;
  check.require(bool(a), "residual_a", "residual_a and residual_b, or neither", "residual_b alone");
  check.require(bool(b), "residual_b", "residual_a and residual_b, or neither", "residual_a alone");
  const auto shape = sizes_of(*a);
  p->rank = shape.size() == 3 ? shape[2] : 0;
  check_like(check, *a, "residual_a", std::vector<int64_t>{s.layers, s.rows, p->rank}, atoms,
             "atoms");
  check_like(check, *b, "residual_b", std::vector<int64_t>{s.layers, p->rank, s.columns}, atoms,
             "atoms");
  p->residual_type = matching_type(check, p->atom_type, a->scalar_type(), "residual_a");
  check.dtype(*b, "residual_b", a->scalar_type());
  p->a = a->const_data_ptr();
  p->b = b->const_data_ptr();
}

}  // namespace

Tensor reconstruct(const Tensor& atoms, const Tensor& coef, std::optional<Tensor> base,
                   std::optional<Tensor> residual_a, std::optional<Tensor> residual_b, double scale,
                   std::optional<ScalarType> out_dtype) {
  const Checker check("atoms_reconstruct");
  ReconstructParams p{};
  p.atom_type = summed_type(check, atoms, "atoms");
  const Sizes s = check_sizes(check, atoms, coef);
  check_coefficient(check, p.atom_type, coef);
  p.num_layers = s.layers;
  p.num_atoms = s.atoms;
  p.rows = s.rows;
  p.columns = s.columns;
  p.coef = coef.const_data_ptr();
  p.coef_per_row = s.per_row;
  p.scale = scale;
  if (base) {
    p.base_type = matching_type(check, p.atom_type, base->scalar_type(), "base");
    check_like(check, *base, "base", s.weights, atoms, "atoms");
    p.base = base->const_data_ptr();
  }
  check_residual(check, s, residual_a, residual_b, atoms, &p);
  const ScalarType type = out_dtype.value_or(atoms.scalar_type());
  p.out_type = matching_type(check, p.atom_type, type, "out_dtype");
  const Tensor out = new_empty(atoms, s.weights, type);
  const auto atom_pointers =
      pointers(atoms.const_data_ptr(), s.atoms, s.size() * int64_t(bytes_of(p.atom_type)));
  const auto out_pointers =
      pointers(out.mutable_data_ptr(), s.layers, s.size() * int64_t(bytes_of(p.out_type)));
  p.atom = atom_pointers.data();
  p.out = out_pointers.data();
  if (atoms.is_cpu()) {
    reconstruct_cpu(p);
    return out;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = atoms.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const char* error = reconstruct_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return out;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

namespace {

// The arguments that atoms_reconstruct_backward and atoms_step_ have in common.
ReconstructBackwardParams parse_backward(const Checker& check, const Tensor& grad,
                                         const Tensor& atoms, const Tensor& coef, double scale) {
  ReconstructBackwardParams p{};
  p.atom_type = summed_type(check, atoms, "atoms");
  const Sizes s = check_sizes(check, atoms, coef);
  check_coefficient(check, p.atom_type, coef);
  p.grad_type = matching_type(check, p.atom_type, grad.scalar_type(), "grad");
  check_like(check, grad, "grad", s.weights, atoms, "atoms");
  p.grad = grad.const_data_ptr();
  p.atoms = atoms.const_data_ptr();
  p.coef = coef.const_data_ptr();
  p.num_layers = s.layers;
  p.num_atoms = s.atoms;
  p.rows = s.rows;
  p.columns = s.columns;
  p.scale = scale;
  p.coef_per_row = s.per_row;
  return p;
}

// Makes the gradient of coef, and what `p` asks for of the atoms.
Tensor run_backward(const Checker& check, ReconstructBackwardParams& p, const Tensor& coef) {
  const Tensor grad_coef = new_empty(coef, sizes_of(coef), coef.scalar_type());
  p.grad_coef = grad_coef.mutable_data_ptr();
  if (coef.is_cpu()) {
    reconstruct_backward_cpu(p);
    return grad_coef;
  }
#ifdef WLIB_HAS_CUDA
  const int32_t device = coef.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t sizes[] = {partial_items(p) * p.num_layers * p.num_atoms};
  const Tensor partials = new_empty(coef, sizes, ScalarType::Float);
  p.partials = static_cast<float*>(partials.mutable_data_ptr());
  if (const char* error = reconstruct_backward_cuda(p, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
  return grad_coef;
#else
  check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif
}

}  // namespace

std::tuple<Tensor, Tensor> reconstruct_backward(const Tensor& grad, const Tensor& atoms,
                                                const Tensor& coef, double scale) {
  const Checker check("atoms_reconstruct_backward");
  ReconstructBackwardParams p = parse_backward(check, grad, atoms, coef, scale);
  const Tensor grad_atoms = new_empty(atoms, sizes_of(atoms), atoms.scalar_type());
  p.grad_atoms = grad_atoms.mutable_data_ptr();
  return {grad_atoms, run_backward(check, p, coef)};
}

namespace {

FloatType check_moment(const Checker& check, const Tensor& moment, const char* argument,
                       const Tensor& atoms, FloatType atom_type) {
  const FloatType type = matching_type(check, atom_type, moment.scalar_type(), argument);
  check_like(check, moment, argument, sizes_of(atoms), atoms, "atoms");
  return type;
}

UpdateRule check_rule(const Checker& check, const std::string& rule, bool has_second) {
  check.require(rule == "adamw" || rule == "lion", "rule", "rule 'adamw' or 'lion'",
                "'" + rule + "'");
  const bool adamw = rule == "adamw";
  check.require(has_second == adamw, "exp_avg_sq",
                adamw ? "exp_avg_sq for rule 'adamw'" : "no exp_avg_sq for rule 'lion'",
                has_second ? "one" : "none");
  return adamw ? UpdateRule::kAdamW : UpdateRule::kLion;
}

UpdateFactors<double> check_factors(const Checker& check, UpdateRule rule, const StepOptions& o) {
  const auto is_beta = [](double beta) { return beta >= 0 && beta < 1; };
  check.require(o.lr >= 0, "lr", "lr of at least 0", o.lr);
  check.require(is_beta(o.beta1), "beta1", "beta1 in [0, 1)", o.beta1);
  check.require(is_beta(o.beta2), "beta2", "beta2 in [0, 1)", o.beta2);
  check.require(o.eps >= 0, "eps", "eps of at least 0", o.eps);
  check.require(o.weight_decay >= 0, "weight_decay", "weight_decay of at least 0", o.weight_decay);
  check.require(o.step >= 1, "step", "step of at least 1", o.step);
  const auto rest = [&](double beta) { return 1 - std::pow(beta, double(o.step)); };
  const bool adamw = rule == UpdateRule::kAdamW;
  return {1 - o.lr * o.weight_decay,
          o.beta1,
          o.beta2,
          1 - o.beta1,
          1 - o.beta2,
          adamw ? o.lr / rest(o.beta1) : o.lr,
          1 / std::sqrt(rest(o.beta2)),
          o.eps};
}

}  // namespace

Tensor atoms_step(const Tensor& grad, const Tensor& atoms, const Tensor& coef,
                  const Tensor& exp_avg, std::optional<Tensor> exp_avg_sq, Text rule, double scale,
                  double lr, double beta1, double beta2, double eps, double weight_decay,
                  int64_t step) {
  const Checker check("atoms_step_");
  ReconstructBackwardParams p = parse_backward(check, grad, atoms, coef, scale);
  AtomsUpdate& u = p.update;
  u.rule = check_rule(check, rule, exp_avg_sq.has_value());
  u.factors = check_factors(check, u.rule, {lr, beta1, beta2, eps, weight_decay, step});
  u.first_type = check_moment(check, exp_avg, "exp_avg", atoms, p.atom_type);
  u.atoms = atoms.mutable_data_ptr();
  u.first = exp_avg.mutable_data_ptr();
  if (exp_avg_sq) {
    u.second_type = check_moment(check, *exp_avg_sq, "exp_avg_sq", atoms, p.atom_type);
    u.second = exp_avg_sq->mutable_data_ptr();
  }
  return run_backward(check, p, coef);
}

}  // namespace wlib::atoms
