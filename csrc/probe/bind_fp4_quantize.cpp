// The quantiser of FP4 in the simulator.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "probe/bind.h"
#include "probe/sim_fp4.h"

namespace wlib::probe {
namespace {

FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}

template <class T>
T* data_of(py::array& a) {
  return a.size() ? static_cast<T*>(a.mutable_data()) : nullptr;
}

void set_seed(const py::object& seed, const int64_t*& data, bool& has_step) {
  if (seed.is_none()) return;
  const auto array = seed.cast<Array<int64_t>>();
  data = array.data();
  has_step = array.size() == 2;
}
const int8_t* signs_of(const py::object& signs) {
  return signs.is_none() ? nullptr : signs.cast<Array<int8_t>>().data();
}

// x [R, C], or packed codes, scales and global scale or None
fp4::Source source_of(const py::list& given) {
  fp4::Source s{};
  const auto first = given[0].cast<py::array>();
  s.rows = first.shape(0);
  s.columns = first.shape(1);
  if (given.size() == 1) {
    s.x = first.data();
    s.x_type = float_type(first);
    s.x_stride = first.strides(0) / first.itemsize();
    return s;
  }
  s.columns *= 2;
  s.packed.codes = static_cast<const uint8_t*>(first.data());
  s.packed.scales = given[1].cast<Array<uint8_t>>().data();
  if (!given[2].is_none()) s.packed.global_scale = given[2].cast<Array<float>>().data();
  return s;
}

// outputs: for each side whether it is transposed, then codes, scales, global scale, carrier, row
// scale and mask as the op returns them; empty: not wanted
sim::Report quantize(const py::list& source, std::vector<std::vector<py::object>> outputs,
                     const py::dict& o, const sim::Options& options) {
  fp4::QuantizeParams p{};
  p.source = source_of(source);
  p.rule = fp4::ScaleRule(o["rule"].cast<int>());
  p.carrier = fp4::Carrier(o["carrier"].cast<int>());
  p.rounding = fp4::Rounding(o["rounding"].cast<int>());
  p.window = o["window"].cast<int>();
  p.hadamard = o["hadamard"].cast<int>();
  p.signs = signs_of(o["signs"]);
  p.swizzle = o["swizzle"].cast<bool>();
  p.square = o["square"].cast<bool>();
  p.offset = o["offset"].cast<uint32_t>();
  set_seed(o["seed"], p.seed, p.seed_has_step);
  if (!o["global_scale"].is_none()) {
    p.global_scale_is_given = true;
    p.global_scale = o["global_scale"].cast<Array<float>>().mutable_data();
  }
  std::vector<fp4::QuantizeParams> sides;
  for (const std::vector<py::object>& side : outputs) {
    p.transpose = side[0].cast<bool>();
    std::vector<py::array> out;
    for (size_t i = 1; i < side.size(); ++i) out.push_back(side[i].cast<py::array>());
    p.out = {data_of<uint8_t>(out[0]), data_of<uint8_t>(out[1]), data_of<uint8_t>(out[3]),
             data_of<float>(out[4]), data_of<uint8_t>(out[5])};
    if (!p.global_scale_is_given) p.global_scale = data_of<float>(out[2]);
    sides.push_back(p);
  }
  return fp4::simulate_quantize(sides, options);
}

sim::Report hadamard(const py::array& x, py::array y, int size, const py::object& signs,
                     bool inverse, const sim::Options& options) {
  fp4::HadamardParams p{};
  p.x = x.data();
  p.y = y.mutable_data();
  p.rows = x.shape(0);
  p.columns = x.shape(1);
  p.x_stride = x.strides(0) / x.itemsize();
  p.size = size;
  p.signs = signs_of(signs);
  p.inverse = inverse;
  p.type = float_type(x);
  return fp4::simulate_hadamard(p, options);
}

sim::Report signs(const py::object& seed, Array<int8_t> out, uint32_t offset,
                  const sim::Options& options) {
  fp4::SignsParams p{};
  set_seed(seed, p.seed, p.seed_has_step);
  p.offset = offset;
  p.size = int(out.size());
  p.signs = out.mutable_data();
  return fp4::simulate_signs(p, options);
}

}  // namespace

void bind_fp4_quantize(py::module_& m) {
  m.def("fp4_quantize", &quantize, py::arg("source"), py::arg("outputs"), py::arg("arguments"),
        py::arg("options"));
  m.def("fp4_hadamard", &hadamard, py::arg("x"), py::arg("y"), py::arg("size"), py::arg("signs"),
        py::arg("inverse"), py::arg("options"));
  m.def("fp4_signs", &signs, py::arg("seed"), py::arg("out").noconvert(), py::arg("offset"),
        py::arg("options"));
}

}  // namespace wlib::probe
