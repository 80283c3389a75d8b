// How CUTLASS reads the operands of its block-scaled MMAs: its own layouts and number types, on the
// host.
#include <cutlass/numeric_types.h>
#include <pybind11/stl.h>

#include <cutlass/detail/sm100_blockscaled_layout.hpp>

#include "fp4/block_scaled.h"
#include "probe/bind.h"

namespace wlib::probe {
namespace {

template <int kBlock>
using ScaleLayout = cutlass::detail::Sm1xxBlockScaledConfig<kBlock>;

// Values of an operand [rows, k] of A or of B, without a global scale. `scales` may be longer,
// never shorter, than the layout.
template <class Scale, int kBlock>
py::array_t<float> dequantize(const Array<uint8_t>& codes, const Array<uint8_t>& scales,
                              bool is_b) {
  using Layout = ScaleLayout<kBlock>;
  const int rows = int(codes.shape(0)), k = int(codes.shape(1)) * 2;
  const auto place = [&] {
    return is_b ? Layout::tile_atom_to_shape_SFB(cute::make_shape(1, rows, k, 1))
                : Layout::tile_atom_to_shape_SFA(cute::make_shape(rows, 1, k, 1));
  }();
  if (int64_t(cute::cosize(place)) != scales.size())
    throw std::invalid_argument("CUTLASS has " + std::to_string(cute::cosize(place)) + " scales");
  const auto values = cute::make_tensor(
      cute::subbyte_iterator<const cutlass::float_e2m1_t>(codes.data()),
      cute::make_layout(cute::make_shape(rows, k), cute::make_stride(k, cute::_1{})));
  py::array_t<float> out({rows, k});
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < k; ++column) {
      const auto scale = Scale::bitcast(scales.data()[place(row, column, 0)]);
      out.mutable_at(row, column) =
          float(cutlass::float_e2m1_t(values(row, column))) * float(scale);
    }
  }
  return out;
}

py::array_t<float> dequantize(const Array<uint8_t>& codes, const Array<uint8_t>& scales, bool nv,
                              bool is_b) {
  return nv ? dequantize<cutlass::float_ue4m3_t, 16>(codes, scales, is_b)
            : dequantize<cutlass::float_ue8m0_t, 32>(codes, scales, is_b);
}

std::vector<std::string> rows() {
  std::vector<std::string> lines;
  for (const fp4::BlockScaledRow& row : fp4::kBlockScaledRows) lines.emplace_back(row.text);
  return lines;
}

}  // namespace

void bind_block_scaled(py::module_& m) {
  m.def("cutlass_dequantize",
        py::overload_cast<const Array<uint8_t>&, const Array<uint8_t>&, bool, bool>(&dequantize),
        py::arg("codes").noconvert(), py::arg("scales").noconvert(), py::arg("nv"),
        py::arg("is_b"));
  m.def("fp4_block_scaled_rows", &rows);
}

}  // namespace wlib::probe
