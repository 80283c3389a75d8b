#include <pybind11/stl.h>

#include <optional>

#include "prefill/append_plan.h"
#include "probe/bind.h"
#include "probe/sim_kv.h"

namespace wlib::probe {
namespace {

using Floats = std::optional<Array<float>>;

const float* data(const Floats& a) { return a ? a->data() : nullptr; }
FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}
void set_strides(int64_t (&to)[2], const py::array& a) {
  for (int i = 0; i < 2; ++i) to[i] = a.strides(i) / a.itemsize();
}

sim::Report append(const py::array& k, const py::array& v, const Array<int64_t>& slots,
                   Array<uint8_t> k_cache, Array<uint8_t> v_cache, Array<float> k_scale,
                   Array<float> v_scale, const Floats& mean, const Floats& smooth,
                   int tokens_per_cta, int heads_per_cta, const sim::Options& options) {
  prefill::AppendParams p{};
  p.k = k.data();
  p.v = v.data();
  p.slots = slots.data();
  p.mean = data(mean);
  p.smooth = data(smooth);
  p.k_cache = k_cache.mutable_data();
  p.v_cache = v_cache.mutable_data();
  p.k_scale = k_scale.mutable_data();
  p.v_scale = v_scale.mutable_data();
  p.tokens = k.shape(0);
  p.blocks = k_cache.shape(0);
  p.heads = int(k.shape(1));
  p.head_dim = int(k.shape(2));
  p.type = float_type(k);
  set_strides(p.k_stride, k);
  set_strides(p.v_stride, v);
  return prefill::simulate_append(p, tokens_per_cta, heads_per_cta, options);
}

sim::Report quantize_queries(const py::array& q, Array<uint8_t> codes, Array<float> scale,
                             const Floats& smooth, const Floats& cos, const Floats& sin,
                             const sim::Options& options) {
  prefill::QuantizeQueriesParams p{};
  p.q = q.data();
  p.smooth = data(smooth);
  p.cos = data(cos);
  p.sin = data(sin);
  p.codes = codes.mutable_data();
  p.scale = scale.mutable_data();
  p.tokens = q.shape(0);
  p.heads = int(q.shape(1));
  p.kv_heads = smooth ? int(smooth->shape(0)) : p.heads;
  p.head_dim = int(q.shape(2));
  p.type = float_type(q);
  set_strides(p.stride, q);
  return prefill::simulate_quantize_queries(p, options);
}

}  // namespace

void bind_kv(py::module_& m) {
  m.def("append_kv_int4", &append, py::arg("k"), py::arg("v"), py::arg("slots").noconvert(),
        py::arg("k_cache").noconvert(), py::arg("v_cache").noconvert(),
        py::arg("k_scale").noconvert(), py::arg("v_scale").noconvert(), py::kw_only(),
        py::arg("mean").noconvert(), py::arg("smooth").noconvert(), py::arg("tokens_per_cta"),
        py::arg("heads_per_cta"), py::arg("options"));
  m.def("quantize_q_fp8", &quantize_queries, py::arg("q"), py::arg("codes").noconvert(),
        py::arg("scale").noconvert(), py::kw_only(), py::arg("smooth").noconvert(),
        py::arg("cos").noconvert(), py::arg("sin").noconvert(), py::arg("options"));
  m.def("append_plan", [](int64_t tokens, int heads) {
    const prefill::AppendPlan plan = prefill::append_plan(tokens, heads);
    return std::tuple(plan.tokens, plan.tokens_per_cta, plan.heads_per_cta);
  });
}

}  // namespace wlib::probe
