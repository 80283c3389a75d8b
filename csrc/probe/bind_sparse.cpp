#include <pybind11/stl.h>

#include <optional>

#include "probe/bind.h"
#include "probe/sim_sparse.h"

namespace wlib::probe {
namespace {

using sparse_lowrank::SampleParams;
using sparse_lowrank::SparseMatmulParams;
using sparse_lowrank::TileSparse;
using Positions = Array<int16_t>;
using Offsets = Array<int64_t>;

FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}

// Rows may lie apart.
sim::Buffer buffer(const py::array& a, const char* name, bool writable) {
  int64_t bytes = a.size() ? a.itemsize() : 0;
  for (int d = 0; d < a.ndim() && a.size(); ++d) bytes += (a.shape(d) - 1) * a.strides(d);
  return {const_cast<void*>(a.data()), size_t(bytes), name, writable};
}

TileSparse matrix(int64_t rows, int64_t columns, const Positions& positions,
                  const Offsets& offsets) {
  TileSparse m{};
  m.positions = positions.data();
  m.offsets = offsets.data();
  m.count = positions.size();
  m.rows = int32_t(rows);
  m.columns = int32_t(columns);
  return m;
}

sim::Report sparse_matmul(const py::array& x, const py::array& values, const Positions& positions,
                          const Offsets& offsets, py::array out,
                          const std::optional<py::array>& base,
                          const std::optional<py::array>& bias, bool transposed, int ctas,
                          const sim::Options& options) {
  SparseMatmulParams p{};
  const int64_t outs = out.shape(1), ins = x.shape(1);
  p.matrix = matrix(transposed ? ins : outs, transposed ? outs : ins, positions, offsets);
  p.matrix.values = values.data();
  p.matrix.value_type = float_type(values);
  p.x = x.data();
  p.base = base ? base->data() : nullptr;
  p.bias = bias ? bias->data() : nullptr;
  p.out = out.mutable_data();
  p.tokens = x.shape(0);
  p.x_stride = x.strides(0) / x.itemsize();
  p.type = float_type(x);
  p.transposed = transposed;
  std::vector<sim::Buffer> buffers = {buffer(x, "x", false), buffer(values, "values", false),
                                      buffer(positions, "positions", false),
                                      buffer(offsets, "offsets", false), buffer(out, "out", true)};
  if (base) buffers.push_back(buffer(*base, "base", false));
  if (bias) buffers.push_back(buffer(*bias, "bias", false));
  return sparse_lowrank::simulate_sparse_matmul(p, ctas, buffers, options);
}

sim::Report sparse_transpose(const py::array& values, const Positions& positions,
                             const Offsets& offsets, int64_t rows, int64_t columns,
                             Array<float> out_values, Positions out_positions, int ctas,
                             const sim::Options& options) {
  TileSparse m = matrix(rows, columns, positions, offsets);
  m.values = values.data();
  m.value_type = float_type(values);
  const std::vector<sim::Buffer> buffers = {
      buffer(values, "values", false), buffer(positions, "positions", false),
      buffer(offsets, "offsets", false), buffer(out_values, "out_values", true),
      buffer(out_positions, "out_positions", true)};
  return sparse_lowrank::simulate_sparse_transpose(
      m, out_values.mutable_data(), out_positions.mutable_data(), ctas, buffers, options);
}

// As the launcher does it: a second kernel if there are runs; findings of the first that has any.
sim::Report sparse_sample(const py::array& dy, const py::array& x, const Positions& positions,
                          const Offsets& offsets, py::array out, int ctas,
                          const sim::Options& options) {
  SampleParams p{};
  p.matrix = matrix(dy.shape(1), x.shape(1), positions, offsets);
  p.matrix.value_type = float_type(out);
  p.dy = dy.data();
  p.x = x.data();
  p.values = out.mutable_data();
  p.tokens = x.shape(0);
  p.dy_stride = dy.strides(0) / dy.itemsize();
  p.x_stride = x.strides(0) / x.itemsize();
  p.type = float_type(x);
  std::vector<float> partials(p.splits() > 1 ? p.splits() * p.matrix.count : 0);
  if (p.splits() > 1) p.partials = partials.data();
  const std::vector<sim::Buffer> buffers = {
      buffer(dy, "dy", false),
      buffer(x, "x", false),
      buffer(positions, "positions", false),
      buffer(offsets, "offsets", false),
      buffer(out, "out", true),
      {partials.data(), partials.size() * sizeof(float), "partials", true}};
  const sim::Report report = sparse_lowrank::simulate_sparse_sample(p, ctas, buffers, options);
  if (!p.partials || !report.findings.empty()) return report;
  const std::vector<sim::Buffer> sums = {
      buffer(out, "out", true),
      {partials.data(), partials.size() * sizeof(float), "partials", false}};
  return sparse_lowrank::simulate_sparse_sum(p, ctas, sums, options);
}

}  // namespace

void bind_sparse(py::module_& m) {
  m.def("sparse_matmul", &sparse_matmul, py::arg("x"), py::arg("values"),
        py::arg("positions").noconvert(), py::arg("offsets").noconvert(), py::arg("out"),
        py::kw_only(), py::arg("base"), py::arg("bias"), py::arg("transposed"), py::arg("ctas"),
        py::arg("options"));
  m.def("sparse_transpose", &sparse_transpose, py::arg("values"), py::arg("positions").noconvert(),
        py::arg("offsets").noconvert(), py::arg("rows"), py::arg("columns"),
        py::arg("out_values").noconvert(), py::arg("out_positions").noconvert(), py::kw_only(),
        py::arg("ctas"), py::arg("options"));
  m.def("sparse_sample", &sparse_sample, py::arg("dy"), py::arg("x"),
        py::arg("positions").noconvert(), py::arg("offsets").noconvert(), py::arg("out"),
        py::kw_only(), py::arg("ctas"), py::arg("options"));
}

}  // namespace wlib::probe
