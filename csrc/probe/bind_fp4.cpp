// FP4 number formats, block scales and layouts, value by value.
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "fp4/sm90_encode.h"
#include "probe/bind.h"
#include "probe/sim_fp4_matmul.h"
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

// x [n, 8] -> eight codes in a word each, as the kernels round
py::array_t<uint32_t> encode_eight(const Array<float>& x, bool clamp) {
  py::array_t<uint32_t> out(x.shape(0));
  for (int64_t i = 0; i < x.shape(0); ++i) {
    float values[8];
    std::copy_n(x.data() + 8 * i, 8, values);
    for (float& value : values) value *= fp4::kEncodeUnit;
    out.mutable_data()[i] =
        clamp ? fp4::encode_eight<true>(values) : fp4::encode_eight<false>(values);
  }
  return out;
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

template <class T>
const T* pointer(const py::dict& arrays, const char* name) {
  return arrays.contains(name) ? arrays[name].cast<Array<T>>().data() : nullptr;
}
// {codes [r, k / 2], scales, perhaps global_scale []}, or {carrier [r, k], e5m2, row_scale [r]};
// FP8 as its bits.
fp4::Operand operand(const py::dict& arrays, int64_t* k) {
  fp4::Operand o{};
  const bool packed = arrays.contains("codes");
  const auto values = arrays[packed ? "codes" : "carrier"].cast<Array<uint8_t>>();
  o.rows = values.shape(0);
  *k = values.shape(1) * (packed ? 2 : 1);
  o.packed = {pointer<uint8_t>(arrays, "codes"), pointer<uint8_t>(arrays, "scales"),
              pointer<float>(arrays, "global_scale")};
  o.carrier = pointer<uint8_t>(arrays, "carrier");
  o.row_scale = pointer<float>(arrays, "row_scale");
  if (!packed)
    o.carrier_type = arrays["e5m2"].cast<bool>() ? fp4::Carrier::kE5M2 : fp4::Carrier::kE4M3;
  return o;
}
// y [m, n] float32, float16, or uint16 with the bits of BF16
sim::Report matmul(const py::dict& a, const py::dict& b, py::array y, int mode, float alpha,
                   int instance, int ctas, const sim::Options& options) {
  fp4::MatmulParams p{};
  p.a = operand(a, &p.k);
  p.b = operand(b, &p.k);
  p.mode = fp4::MatmulMode(mode);
  p.alpha = alpha;
  p.y = y.mutable_data();
  p.out_type = y.itemsize() == 4         ? FloatType::kFloat32
               : y.dtype().kind() == 'f' ? FloatType::kFloat16
                                         : FloatType::kBFloat16;
  return fp4::simulate_matmul(p, instance, ctas, options);
}

}  // namespace

void bind_fp4(py::module_& m) {
  m.def("e2m1_to_float", py::vectorize([](uint32_t code) { return e2m1_to_float(code); }));
  m.def("float_to_e2m1", py::vectorize([](float value) { return uint8_t(float_to_e2m1(value)); }));
  m.def("fp4_encode_eight", &encode_eight, py::arg("x").noconvert(), py::arg("clamp"));
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
  m.def("fp4_matmul", &matmul, py::arg("a"), py::arg("b"), py::arg("y"), py::kw_only(),
        py::arg("mode"), py::arg("alpha"), py::arg("instance"), py::arg("ctas"),
        py::arg("options"));
  m.def("fp4_swizzled_scale", &fp4::swizzled_scale);
}

}  // namespace wlib::probe
