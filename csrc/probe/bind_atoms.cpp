#include <pybind11/stl.h>

#include <optional>

#include "probe/bind.h"
#include "probe/sim_atoms.h"

namespace wlib::probe {
namespace {

using Optional = std::optional<py::array>;

FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}
sim::Buffer buffer(const py::array& a, const char* name, bool writable, bool initialised = false) {
  return {pointer(a), size_t(a.nbytes()), name, writable, initialised};
}
int64_t trailing(const py::array& a, int first) {
  int64_t size = 1;
  for (int d = first; d < a.ndim(); ++d) size *= a.shape(d);
  return size;
}

// All arrays contiguous: atoms [S, rows, columns], coef [L, S] or [L, S, rows], out [L, ...].
sim::Report atoms_reconstruct(const py::array& atoms, const Array<float>& coef,
                              const Optional& base, const Optional& a, const Optional& b,
                              double scale, const py::array& out, int ctas, bool resident,
                              const sim::Options& options) {
  atoms::ReconstructParams p{};
  const void* first_atom = atoms.data();
  void* first_out = pointer(out);
  p.atom = &first_atom;
  p.out = &first_out;
  p.coef = coef.data();
  p.num_layers = coef.shape(0);
  p.num_atoms = atoms.shape(0);
  p.rows = atoms.shape(1);
  p.columns = trailing(atoms, 2);
  p.coef_per_row = coef.ndim() == 3;
  p.scale = scale;
  p.atom_type = float_type(atoms);
  p.out_type = float_type(out);
  atoms::Buffers buffers = {buffer(atoms, "atoms", false), buffer(coef, "coef", false),
                            buffer(out, "out", true)};
  if (base) {
    p.base = base->data();
    p.base_type = float_type(*base);
    buffers.push_back(buffer(*base, "base", false));
  }
  if (a) {
    p.a = a->data();
    p.b = b->data();
    p.rank = a->shape(2);
    p.residual_type = float_type(*a);
    buffers.push_back(buffer(*a, "residual_a", false));
    buffers.push_back(buffer(*b, "residual_b", false));
  }
  return simulate_reconstruct(p, {ctas, resident, options}, buffers);
}

// lists[s][t] -> outs[p][t].
sim::Report atoms_combine(const std::vector<std::vector<py::array>>& lists,
                          const Array<float>& coef, const std::vector<std::vector<py::array>>& outs,
                          bool few, int ctas, bool resident, const sim::Options& options) {
  const size_t width = lists.at(0).size();
  atoms::Buffers buffers = {buffer(coef, "coef", false)};
  std::vector<std::vector<const void*>> inputs(width);
  std::vector<std::vector<void*>> results(width);
  std::vector<atoms::ReconstructParams> tensors(width);
  for (size_t t = 0; t < width; ++t) {
    for (const auto& list : lists) {
      inputs[t].push_back(list.at(t).data());
      buffers.push_back(buffer(list[t], "tensor", false));
    }
    for (const auto& list : outs) {
      results[t].push_back(pointer(list.at(t)));
      buffers.push_back(buffer(list[t], "out", true));
    }
    atoms::ReconstructParams& p = tensors[t];
    p.atom = inputs[t].data();
    p.out = results[t].data();
    p.coef = coef.data();
    p.num_layers = coef.shape(0);
    p.num_atoms = coef.shape(1);
    p.columns = lists[0][t].size();
    p.atom_type = float_type(lists[0][t]);
  }
  return simulate_combine(tensors, few, {ctas, resident, options}, buffers);
}

// Without a rule grad_atoms is written, with one ("adamw", "lion") atoms and moments are; factors
// as in UpdateFactors.
sim::Report atoms_backward(const py::array& grad, const py::array& atoms, const Array<float>& coef,
                           double scale, const Optional& grad_atoms, const Array<float>& grad_coef,
                           const std::string& rule, const std::vector<double>& factors,
                           const Optional& first, const Optional& second, int ctas, bool resident,
                           const sim::Options& options) {
  atoms::ReconstructBackwardParams p{};
  p.grad = grad.data();
  p.atoms = atoms.data();
  p.coef = coef.data();
  p.grad_coef = pointer(grad_coef);
  p.num_layers = coef.shape(0);
  p.num_atoms = atoms.shape(0);
  p.rows = atoms.shape(1);
  p.columns = trailing(atoms, 2);
  p.coef_per_row = coef.ndim() == 3;
  p.scale = scale;
  p.grad_type = float_type(grad);
  p.atom_type = float_type(atoms);
  atoms::Buffers buffers = {buffer(grad, "grad", false), buffer(coef, "coef", false),
                            buffer(grad_coef, "grad_coef", true),
                            buffer(atoms, "atoms", !rule.empty(), true)};
  if (grad_atoms) {
    p.grad_atoms = pointer(*grad_atoms);
    buffers.push_back(buffer(*grad_atoms, "grad_atoms", true));
  }
  if (!rule.empty()) {
    const auto& f = factors;
    p.update.rule = rule == "adamw" ? UpdateRule::kAdamW : UpdateRule::kLion;
    p.update.factors = {f.at(0), f.at(1), f.at(2), f.at(3), f.at(4), f.at(5), f.at(6), f.at(7)};
    p.update.atoms = pointer(atoms);
    p.update.first = pointer(*first);
    p.update.first_type = float_type(*first);
    buffers.push_back(buffer(*first, "first moments", true, true));
    if (second) {
      p.update.second = pointer(*second);
      p.update.second_type = float_type(*second);
      buffers.push_back(buffer(*second, "second moments", true, true));
    }
  }
  return simulate_backward(p, {ctas, resident, options}, buffers);
}

}  // namespace

void bind_atoms(py::module_& m) {
  m.def("atoms_reconstruct", &atoms_reconstruct, py::arg("atoms"), py::arg("coef").noconvert(),
        py::arg("base"), py::arg("a"), py::arg("b"), py::arg("scale"), py::arg("out"),
        py::kw_only(), py::arg("ctas"), py::arg("resident"), py::arg("options"));
  m.def("atoms_combine", &atoms_combine, py::arg("lists"), py::arg("coef").noconvert(),
        py::arg("outs"), py::kw_only(), py::arg("few"), py::arg("ctas"), py::arg("resident"),
        py::arg("options"));
  m.def("atoms_backward", &atoms_backward, py::arg("grad"), py::arg("atoms"),
        py::arg("coef").noconvert(), py::arg("scale"), py::arg("grad_atoms"),
        py::arg("grad_coef").noconvert(), py::kw_only(), py::arg("rule"), py::arg("factors"),
        py::arg("first"), py::arg("second"), py::arg("ctas"), py::arg("resident"),
        py::arg("options"));
}

}  // namespace wlib::probe
