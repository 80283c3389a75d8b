// FP4 number formats, block scales and layouts, value by value.
#include <pybind11/stl.h>

#include <vector>

#include "probe/bind.h"
#include "wlib/layout/scales_128x4.h"
#include "wlib/numerics/e5m2.h"
#include "wlib/numerics/fp4_carrier.h"
#include "wlib/numerics/fp4_rounding.h"
#include "wlib/numerics/fp4_scale.h"
#include "wlib/numerics/hadamard.h"

namespace wlib::probe {
namespace {

// Bytes of the 16 codes times 2^d.
std::vector<int> carrier_bytes(bool e5m2, int d) {
  const auto table = fp4::carrier_table(e5m2 ? fp4::Carrier::kE5M2 : fp4::Carrier::kE4M3, d);
  std::vector<int> bytes;
  for (uint32_t code = 0; code < 16; ++code) bytes.push_back(fp4::carrier_byte(table, code));
  return bytes;
}

// x [n, 32] -> E8M0 codes
py::array_t<uint8_t> mx_scales(const Array<float>& x, int rule) {
  py::array_t<uint8_t> out(x.shape(0));
  for (int64_t i = 0; i < x.shape(0); ++i) {
    float block[fp4::kMxBlock];
    for (int j = 0; j < fp4::kMxBlock; ++j) block[j] = x.at(i, j);
    out.mutable_at(i) = uint8_t(fp4::mx_scale(block, fp4::ScaleRule(rule)));
  }
  return out;
}

// Of elements 0 .. count - 1, of blocks 0 .. count - 1.
std::vector<uint32_t> code_bits(uint64_t seed, uint32_t step, uint32_t stream, int64_t count) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < count; ++i) {
    const Draw d = fp4::rounding_draw({seed, step, stream}, uint64_t(i) / kRoundingBlock);
    bits.push_back(fp4::code_bits(d, int(i % kRoundingBlock)));
  }
  return bits;
}
std::vector<uint32_t> scale_bits(uint64_t seed, uint32_t step, uint32_t stream, int64_t count) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < count; ++i)
    bits.push_back(fp4::scale_bits({seed, step, stream}, uint64_t(i)));
  return bits;
}

}  // namespace

void bind_fp4(py::module_& m) {
  m.def("e2m1_to_float", py::vectorize([](uint32_t code) { return e2m1_to_float(code); }));
  m.def("float_to_e2m1", py::vectorize([](float value) { return uint8_t(float_to_e2m1(value)); }));
  m.def("float_to_e2m1_stochastic", py::vectorize([](float value, uint32_t random) {
          return uint8_t(float_to_e2m1_stochastic(value, random));
        }));
  m.def("float_to_e4m3_stochastic", py::vectorize([](float value, uint32_t random) {
          return fp4::float_to_e4m3_stochastic(value, random);
        }));
  m.def("fp4_code_bits", &code_bits);
  m.def("fp4_scale_bits", &scale_bits);
  m.def("e8m0_to_float", py::vectorize([](uint32_t code) { return e8m0_to_float(code); }));
  m.def("e8m0_reciprocal", py::vectorize([](uint32_t code) { return e8m0_reciprocal(code); }));
  m.def("e5m2_to_float", py::vectorize([](uint8_t code) { return e5m2_to_float(code); }));
  m.def("fp4_row_scale", py::vectorize([](int biased) { return fp4::row_scale(biased); }));
  m.def("fp4_carrier_bytes", &carrier_bytes);
  m.def("fp4_mx_scales", &mx_scales, py::arg("x").noconvert(), py::arg("rule"));
  m.def("fp4_swizzled_scale", &fp4::swizzled_scale);
}

}  // namespace wlib::probe
