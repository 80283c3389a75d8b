#include <pybind11/stl.h>

#include <optional>

#include "probe/bind.h"
#include "probe/sim_linear.h"

namespace wlib::probe {
namespace {

using Optional = std::optional<py::array>;

// All arrays contiguous: x [M, K] and atoms [S, N, K] of float16, or uint16 for the bits of
// bfloat16; coef [S] or [M, S]; out [M, N].
sim::Report atoms_linear(const py::array& x, const py::array& atoms, const Array<float>& coef,
                         const Optional& bias, const Optional& base, const py::array& out, int ctas,
                         const sim::Options& options) {
  const auto buffer = [](const py::array& a, const char* name, bool writable = false) {
    return sim::Buffer{const_cast<void*>(a.data()), size_t(a.nbytes()), name, writable};
  };
  atoms::LinearParams p{};
  p.x = x.data();
  p.atoms = atoms.data();
  p.coef = coef.data();
  p.out = const_cast<void*>(out.data());
  p.tokens = x.shape(0);
  p.columns = x.shape(1);
  p.num_atoms = atoms.shape(0);
  p.rows = atoms.shape(1);
  p.coef_per_token = coef.ndim() == 2;
  p.type = x.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;
  std::vector<sim::Buffer> buffers = {buffer(x, "x"), buffer(atoms, "atoms"), buffer(coef, "coef"),
                                      buffer(out, "out", true)};
  if (bias) {
    p.bias = bias->data();
    buffers.push_back(buffer(*bias, "bias"));
  }
  if (base) {
    p.base = base->data();
    buffers.push_back(buffer(*base, "base"));
  }
  return atoms::simulate_linear(p, ctas, buffers, options);
}

// Blocks of tokens, rows and atoms, chunks of columns and their shares.
std::vector<int> atoms_linear_plan(int64_t tokens, int64_t rows, int64_t columns, int64_t atoms) {
  const atoms::LinearPlan plan = atoms::plan_linear(tokens, rows, columns, atoms);
  return {plan.token_blocks, plan.row_blocks, plan.atom_blocks, plan.chunks, plan.shares};
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("atoms_linear", &atoms_linear, py::arg("x"), py::arg("atoms"), py::arg("coef").noconvert(),
        py::arg("bias"), py::arg("base"), py::arg("out"), py::kw_only(), py::arg("ctas"),
        py::arg("options"));
  m.def("atoms_linear_plan", &atoms_linear_plan, py::arg("tokens"), py::arg("rows"),
        py::arg("columns"), py::arg("atoms"));
}

}  // namespace wlib::probe
