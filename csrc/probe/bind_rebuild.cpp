#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "probe/bind.h"
#include "probe/sim_rebuild.h"

namespace wlib::probe {
namespace {

FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}
rebuild::RebuildOperand operand(const py::array& a) {
  const auto stride = [&](int dim) { return int32_t(a.strides(dim) / a.itemsize()); };
  return {a.data(), stride(a.ndim() - 2), stride(a.ndim() - 1)};
}

// (w0 or None, out, [operands], form, scale); matrices may be strided, w0 and out are contiguous.
using Layer = std::tuple<std::optional<py::array>, py::array, std::vector<py::array>, int, double>;

rebuild::RebuildLayer layer(const Layer& given) {
  const auto& [w0, out, operands, form, scale] = given;
  rebuild::RebuildLayer l{};
  l.form = rebuild::RebuildForm(form);
  l.scale = scale;
  l.w0 = w0 ? w0->data() : nullptr;
  l.out = const_cast<void*>(out.data());
  l.w0_type = w0 ? float_type(*w0) : FloatType::kFloat32;
  l.out_type = float_type(out);
  l.operand_type = float_type(operands.at(0));
  l.rows = int32_t(out.shape(0));
  l.columns = int32_t(out.shape(1));
  if (l.form == rebuild::RebuildForm::kBlockAffine) {
    l.b1 = operand(operands[0]);
    l.rank1 = int32_t(operands[0].shape(1));
    return l;
  }
  l.a1 = operand(operands.at(0));
  l.b1 = operand(operands.at(1));
  const bool kron = l.form == rebuild::RebuildForm::kKron;
  l.rank1 = int32_t(operands[1].shape(0));
  l.rank2 = kron ? int32_t(operands[1].shape(1)) : 0;
  if (l.form != rebuild::RebuildForm::kHadamard) return l;
  l.a2 = operand(operands.at(2));
  l.b2 = operand(operands.at(3));
  l.rank2 = int32_t(operands[3].shape(0));
  return l;
}

sim::Buffer buffer(const py::array& a, const char* name, bool writable) {
  int64_t elements = 1;
  for (int d = 0; d < a.ndim(); ++d) {
    if (a.shape(d) == 0) elements = 0;
    elements += (a.shape(d) - 1) * (a.strides(d) / a.itemsize());
  }
  return {const_cast<void*>(a.data()), size_t(std::max<int64_t>(elements, 0) * a.itemsize()), name,
          writable};
}

sim::Report rebuild(const std::vector<Layer>& given, std::optional<int64_t> seed, int capacity,
                    int ctas, const sim::Options& options) {
  std::vector<rebuild::RebuildLayer> layers;
  std::vector<sim::Buffer> buffers;
  for (const Layer& one : given) {
    const auto& [w0, out, operands, form, scale] = one;
    layers.push_back(layer(one));
    buffers.push_back(buffer(out, "out", true));
    if (w0 && w0->data() != out.data()) buffers.push_back(buffer(*w0, "w0", false));
    for (const py::array& a : operands) buffers.push_back(buffer(a, "operand", false));
  }
  const rebuild::Rounding rounding{uint64_t(seed.value_or(0)), seed.has_value()};
  return rebuild::simulate_rebuild(layers, rounding, capacity, ctas, buffers, options);
}

rebuild::PrngParams prng_params(const Array<float>& coef, const py::array& values, int distribution,
                                uint64_t seed, uint32_t tensor) {
  rebuild::PrngParams p{};
  p.coef = pointer(coef);
  p.values = pointer(values);
  p.elements = values.size();
  p.count = int32_t(coef.size());
  p.tensor = tensor;
  p.seed = seed;
  p.distribution = Distribution(distribution);
  p.value_type = float_type(values);
  return p;
}
sim::Report prng_expand(const Array<float>& coef, const py::array& out, int distribution,
                        uint64_t seed, uint32_t tensor, const sim::Options& options) {
  return rebuild::simulate_prng_expand(prng_params(coef, out, distribution, seed, tensor), options);
}
sim::Report prng_project(const py::array& values, const Array<float>& coef, int distribution,
                         uint64_t seed, uint32_t tensor, int parts, const sim::Options& options) {
  return rebuild::simulate_prng_project(prng_params(coef, values, distribution, seed, tensor),
                                        parts, options);
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  const Draw d = philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key0, key1);
  return {d.word[0], d.word[1], d.word[2], d.word[3]};
}

}  // namespace

void bind_rebuild(py::module_& m) {
  m.def("philox", &philox);
  m.def("rebuild", &rebuild, py::arg("layers"), py::kw_only(), py::arg("seed"), py::arg("capacity"),
        py::arg("ctas"), py::arg("options"));
  m.def("prng_expand", &prng_expand, py::arg("coef").noconvert(), py::arg("out"), py::kw_only(),
        py::arg("distribution"), py::arg("seed"), py::arg("tensor"), py::arg("options"));
  m.def("prng_project", &prng_project, py::arg("values"), py::arg("coef").noconvert(),
        py::kw_only(), py::arg("distribution"), py::arg("seed"), py::arg("tensor"),
        py::arg("parts"), py::arg("options"));
}

}  // namespace wlib::probe
