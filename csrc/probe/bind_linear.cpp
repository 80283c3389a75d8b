#include <pybind11/stl.h>

#include <optional>

#include "probe/bind.h"
#include "probe/sim_linear.h"

namespace wlib::probe {
namespace {

using Optional = std::optional<py::array>;

// All arrays contiguous: x [M, K] of float16, or uint16 for the bits of bfloat16; atoms [S, N, K]
// likewise, or uint8 for the codes of E4M3, or packed INT4 of int4_groups to a tile; coef [S] or
// [M, S]; out [M, N].
sim::Report atoms_linear(const py::array& x, const py::array& atoms, const Array<float>& coef,
                         const Optional& bias, const Optional& base, const py::array& out, int ctas,
                         const sim::Options& options, int int4_groups) {
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
  p.rows = out.shape(1);
  p.coef_per_token = coef.ndim() == 2;
  p.type = x.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;
  p.int4_groups = int4_groups;
  p.atom_type = atoms.itemsize() == 1 ? FloatType::kE4M3 : p.type;
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

// Blocks of tokens, rows and atoms, chunks of columns and their shares, for atoms of so many bits.
std::vector<int> atoms_linear_plan(int64_t tokens, int64_t rows, int64_t columns, int64_t atoms,
                                   int bits) {
  const atoms::LinearTile tile = bits == 4   ? atoms::kLinear4Tile
                                 : bits == 8 ? atoms::kLinear8Tile
                                             : atoms::kLinear16Tile;
  const atoms::LinearPlan plan = atoms::plan_linear(tokens, rows, columns, atoms, tile);
  return {plan.token_blocks, plan.row_blocks, plan.atom_blocks, plan.chunks, plan.shares};
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("atoms_linear", &atoms_linear, py::arg("x"), py::arg("atoms"), py::arg("coef").noconvert(),
        py::arg("bias"), py::arg("base"), py::arg("out"), py::kw_only(), py::arg("ctas"),
        py::arg("options"), py::arg("int4_groups") = 0);
  m.def("atoms_linear_plan", &atoms_linear_plan, py::arg("tokens"), py::arg("rows"),
        py::arg("columns"), py::arg("atoms"), py::arg("bits"));
}

}  // namespace wlib::probe
