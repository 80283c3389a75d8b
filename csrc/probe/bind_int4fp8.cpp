#include <pybind11/stl.h>

#include <stdexcept>

#include "probe/bind.h"
#include "probe/sim_int4fp8.h"

namespace wlib::probe {
namespace {

FloatType float_type(const py::array& a) {
  const py::dtype dtype = a.dtype();
  if (dtype.kind() == 'f' && dtype.itemsize() == 4) return FloatType::kFloat32;
  if (dtype.kind() == 'f' && dtype.itemsize() == 2) return FloatType::kFloat16;
  if (dtype.kind() == 'u' && dtype.itemsize() == 2) return FloatType::kBFloat16;
  if (dtype.kind() == 'u' && dtype.itemsize() == 1) return FloatType::kE4M3;
  throw std::invalid_argument(
      "expected float32, float16, uint16 with the bits of bfloat16, or uint8 with those of E4M3");
}

// options: bias [n], residual like y (or y itself), out_scale [], each or None; silu_mul, a bool
int4fp8::Epilogue epilogue(const py::dict& options, py::array& y) {
  int4fp8::Epilogue e{};
  const auto read = [&](const char* name, const void*& data, FloatType& type) {
    if (options[name].is_none()) return;
    const auto array = options[name].cast<py::array>();
    data = array.data();
    type = float_type(array);
  };
  read("bias", e.bias, e.bias_type);
  read("residual", e.residual, e.residual_type);
  if (!options["out_scale"].is_none())
    e.out_scale = options["out_scale"].cast<Array<float>>().data();
  if (options["silu_mul"].cast<bool>()) e.activation = int4fp8::Activation::kSiluMul;
  e.y = y.mutable_data();
  e.out_type = float_type(y);
  return e;
}

// x [m, k] E4M3 bits (rows may be strided), weight packed, x_scale [m], y [m, n or n / 2]
int4fp8::GemmParams gemm_params(const py::array_t<uint8_t>& x, const Array<uint8_t>& weight,
                                const Array<float>& x_scale, const py::dict& options, py::array& y,
                                int groups_per_tile, bool zero_points) {
  int4fp8::GemmParams p{};
  p.x = x.data();
  p.weight = weight.data();
  p.x_scale = x_scale.data();
  p.epilogue = epilogue(options, y);
  p.m = x.shape(0);
  p.n = p.epilogue.activation == int4fp8::Activation::kSiluMul ? 2 * y.shape(1) : y.shape(1);
  p.k = x.shape(1);
  p.x_stride = x.strides(0);
  p.groups_per_tile = groups_per_tile;
  p.zero_points = zero_points;
  return p;
}

// offsets [experts + 1] int32 or int64; the weight is then stacked, and a bias is [experts, n]
void set_experts(int4fp8::GemmParams& p, const py::array& offsets) {
  p.expert_offsets = offsets.data();
  p.wide_offsets = offsets.itemsize() == 8;
  p.experts = offsets.shape(0) - 1;
}

sim::Report decode(const py::array_t<uint8_t>& x, const Array<uint8_t>& weight,
                   const Array<float>& x_scale, const py::dict& epilogue, py::array y,
                   const std::optional<py::array>& expert_offsets, int groups_per_tile,
                   bool prefetch_weight, bool zero_points, int tokens, int consumers, int stages,
                   int split, int clusters, const sim::Options& options) {
  auto p = gemm_params(x, weight, x_scale, epilogue, y, groups_per_tile, zero_points);
  if (expert_offsets) set_experts(p, *expert_offsets);
  p.prefetch_weight = prefetch_weight;
  return int4fp8::simulate_decode(p, {tokens, consumers, stages, split, clusters}, options);
}

sim::Report cooperative(const py::array_t<uint8_t>& x, const Array<uint8_t>& weight,
                        const Array<float>& x_scale, const py::dict& epilogue, py::array y,
                        const std::optional<Array<float>>& x_sums,
                        const std::optional<py::array>& expert_offsets, int groups_per_tile,
                        bool zero_points, int tokens, int rows, int stages, int clusters,
                        const sim::Options& options) {
  auto p = gemm_params(x, weight, x_scale, epilogue, y, groups_per_tile, zero_points);
  if (expert_offsets) set_experts(p, *expert_offsets);
  if (x_sums) {
    p.x_sums = x_sums->data();
    p.x_sums_pitch = x_sums->shape(1);
  }
  return int4fp8::simulate_cooperative(p, {tokens, rows, stages, clusters}, options);
}

// x [rows, k], or [rows, 2 k] with `interleaved` given -> codes [rows, k] E4M3 bits, scale [rows],
// sums [groups, pitch] or None; `weight` [k] asks for the norm.
sim::Report quantize(const py::array& x, Array<uint8_t>& codes, Array<float>& scale,
                     std::optional<Array<float>> sums, int group_log2,
                     const std::optional<py::array>& weight,
                     const std::optional<py::array>& residual,
                     std::optional<py::array> new_residual, float eps,
                     std::optional<bool> interleaved, const sim::Options& options) {
  int4fp8::QuantizeParams p{};
  p.x = x.data();
  p.codes = codes.mutable_data();
  p.scale = scale.mutable_data();
  p.rows = x.shape(0);
  p.k = codes.shape(1);
  p.x_stride = x.strides(0) / x.itemsize();
  p.x_type = float_type(x);
  p.row_warps = int4fp8::row_warps(p.k);
  if (sums) {
    p.sums = sums->mutable_data();
    p.pitch = sums->shape(1);
    p.group_log2 = group_log2;
  }
  if (weight) {
    p.input = int4fp8::RowInput::kRmsNorm;
    p.weight = weight->data();
    p.weight_type = float_type(*weight);
    p.eps = eps;
  }
  if (residual) {
    p.residual = residual->data();
    p.residual_stride = residual->strides(0) / residual->itemsize();
    p.new_residual = new_residual->mutable_data();
  }
  if (interleaved) {
    p.input = int4fp8::RowInput::kSiluMul;
    p.interleaved = *interleaved;
  }
  return int4fp8::simulate_quantize(p, options);
}

// x [rows, k] E4M3 bits (rows may be strided) -> sums [ceil(k / group), pitch]
sim::Report group_sums(const py::array_t<uint8_t>& x, Array<float>& sums, int group_log2,
                       const sim::Options& options) {
  const int4fp8::GroupSumsParams p{x.data(),     sums.mutable_data(), x.shape(0), x.shape(1),
                                   x.strides(0), sums.shape(1),       group_log2};
  return int4fp8::simulate_group_sums(p, options);
}

}  // namespace

void bind_int4fp8(py::module_& m) {
  m.def("int4fp8_decode_instances", &int4fp8::decode_instances);
  m.def("int4fp8_decode", &decode, py::arg("x").noconvert(), py::arg("weight").noconvert(),
        py::arg("x_scale").noconvert(), py::arg("epilogue"), py::arg("y"), py::kw_only(),
        py::arg("expert_offsets"), py::arg("groups_per_tile"), py::arg("prefetch_weight"),
        py::arg("zero_points"), py::arg("tokens"), py::arg("consumers"), py::arg("stages"),
        py::arg("split"), py::arg("clusters"), py::arg("options"));
  m.def("int4fp8_cooperative_instances", &int4fp8::cooperative_instances);
  m.def("int4fp8_cooperative", &cooperative, py::arg("x").noconvert(),
        py::arg("weight").noconvert(), py::arg("x_scale").noconvert(), py::arg("epilogue"),
        py::arg("y"), py::kw_only(), py::arg("x_sums"), py::arg("expert_offsets"),
        py::arg("groups_per_tile"), py::arg("zero_points"), py::arg("tokens"), py::arg("rows"),
        py::arg("stages"), py::arg("clusters"), py::arg("options"));
  m.def("int4fp8_quantize", &quantize, py::arg("x"), py::arg("codes").noconvert(),
        py::arg("scale").noconvert(), py::kw_only(), py::arg("sums") = py::none(),
        py::arg("group_log2") = 0, py::arg("weight") = py::none(), py::arg("residual") = py::none(),
        py::arg("new_residual") = py::none(), py::arg("eps") = 0.0f,
        py::arg("interleaved") = py::none(), py::arg("options"));
  m.def("int4fp8_group_sums", &group_sums, py::arg("x").noconvert(), py::arg("sums").noconvert(),
        py::kw_only(), py::arg("group_log2"), py::arg("options"));
}

}  // namespace wlib::probe
