// Number formats, value by value.
#include "probe/bind.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/odd_code.h"
#include "wlib/numerics/quotient.h"
#include "wlib/numerics/silu.h"

namespace wlib::probe {
namespace {

// Of two odd codes in one byte: 2q + 1 of each.
std::pair<int, int> odd_decode(int pair) {
  return {odd_decode_a(uint8_t(pair)), odd_decode_b(uint8_t(pair))};
}

}  // namespace

void bind_numerics(py::module_& m) {
  m.def("e4m3_to_float", py::vectorize([](uint8_t code) { return e4m3_to_float(code); }));
  m.def("float_to_e4m3", py::vectorize([](float value) { return float_to_e4m3(value); }));
  m.def("quotient", py::vectorize([](float x, float divisor) { return Quotient(divisor)(x); }));
  m.def("divide_by_reciprocal", py::vectorize(&divide_by_reciprocal));
  m.def("exp_between_80", py::vectorize(&exp_between_80));
  m.def("odd_encode_pair", &odd_encode_pair);
  m.def("odd_decode_pair", &odd_decode);
}

}  // namespace wlib::probe
