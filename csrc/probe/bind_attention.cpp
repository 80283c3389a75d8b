#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <vector>

#include "prefill/attention_plan.h"
#include "probe/bind.h"
#include "probe/sim_attention.h"

namespace wlib::probe {
namespace {

FloatType float_type(const py::array& a) {
  if (a.dtype().itemsize() == 4) return FloatType::kFloat32;
  return a.dtype().kind() == 'f' ? FloatType::kFloat16 : FloatType::kBFloat16;  // or its bits
}

template <class T>
const T* pointer(const py::dict& arrays, const char* name) {
  if (!arrays.contains(name) || arrays[name].is_none()) return nullptr;
  return arrays[name].cast<Array<T>>().data();
}

// A cache with a row per token: where it is and how far apart its rows are, without a copy.
template <class T>
const T* rows(const py::dict& arrays, const char* name, prefill::RowStrides& stride) {
  const auto array = arrays[name].cast<py::array>();
  stride = {array.strides(0), array.strides(1), array.strides(2)};
  return static_cast<const T*>(array.data());
}
void cache_params(const py::dict& a, prefill::AttentionParams& p) {
  const auto k_cache = a["k_cache"].cast<py::array>();
  p.blocks = k_cache.shape(0);
  p.token_rows = k_cache.ndim() == 4;
  p.block_tokens = p.token_rows ? int(k_cache.shape(1)) : int4kv::kBlockTokens;
  p.kv_heads = int(k_cache.shape(p.token_rows ? 2 : 1));
  if (p.token_rows) {
    p.k_cache = rows<uint8_t>(a, "k_cache", p.k_rows);
    p.v_cache = rows<uint8_t>(a, "v_cache", p.v_rows);
    p.k_scale = rows<float>(a, "k_scale", p.k_scale_rows);
    p.v_scale = rows<float>(a, "v_scale", p.v_scale_rows);
  } else {
    p.k_cache = pointer<uint8_t>(a, "k_cache");
    p.v_cache = pointer<uint8_t>(a, "v_cache");
    p.k_scale = pointer<float>(a, "k_scale");
    p.v_scale = pointer<float>(a, "v_scale");
  }
}

// Arrays by the names of wlib.attention_prefill, FP8 as the bits of E4M3.
prefill::AttentionParams attention_params(const py::dict& a, const py::dict& o, py::array& out,
                                          Array<float>& lse) {
  const auto q = a["q"].cast<Array<uint8_t>>();
  const auto page_table = a["page_table"].cast<Array<int32_t>>();
  prefill::AttentionParams p{};
  p.q = q.data();
  p.q_scale = pointer<float>(a, "q_scale");
  cache_params(a, p);
  p.page_table = page_table.data();
  p.cached = pointer<int32_t>(a, "seqused_k");
  p.starts = pointer<int32_t>(a, "cu_seqlens_q");
  p.k_new = pointer<uint8_t>(a, "k_new");
  p.v_new = pointer<uint8_t>(a, "v_new");
  p.k_new_scale = pointer<float>(a, "k_new_scale");
  p.v_new_scale = pointer<float>(a, "v_new_scale");
  p.key_mean = pointer<float>(a, "key_mean");
  p.sinks = pointer<float>(a, "sinks");
  p.out = out.mutable_data();
  p.lse = lse.mutable_data();
  p.tokens = q.shape(0);
  p.heads = int(q.shape(1));
  p.head_dim = int(q.shape(2));
  p.batch = int(page_table.shape(0));
  p.max_blocks = page_table.shape(1);
  p.max_queries = o["max_seqlen_q"].cast<int>();
  p.softmax_scale = o["softmax_scale"].cast<float>();
  p.softcap = o["softcap"].cast<float>();
  p.causal = o["causal"].cast<bool>();
  p.allow_fp16_scores = o["allow_fp16_scores"].cast<bool>();
  p.window_left = o["window_left"].cast<int>();
  p.window_right = o["window_right"].cast<int>();
  p.out_type = float_type(out);
  return p;
}

sim::Report attention(const py::dict& arrays, const py::dict& options, py::array out,
                      Array<float> lse, std::optional<Array<float>> parts, int splits, int ctas,
                      const sim::Options& simulation) {
  const prefill::AttentionParams p = attention_params(arrays, options, out, lse);
  return prefill::simulate_attention(p, {ctas, splits}, parts ? parts->mutable_data() : nullptr,
                                     simulation);
}

// (sequence, first query, rows, steps) of each item, in order.
std::vector<std::tuple<int, int, int, int>> attention_items(const py::dict& arrays,
                                                            const py::dict& options, py::array out,
                                                            Array<float> lse, int splits) {
  std::vector<std::tuple<int, int, int, int>> items;
  for (const prefill::ItemSteps& i :
       prefill::attention_items(attention_params(arrays, options, out, lse), splits)) {
    items.emplace_back(i.sequence, i.first_query, i.rows, i.steps);
  }
  return items;
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_instances", &prefill::attention_instances);
  m.def("choose_splits", &prefill::choose_splits, py::arg("tiles"), py::arg("steps"),
        py::arg("sms"));
  m.def("attention_items", &attention_items, py::arg("arrays"), py::arg("options"), py::arg("out"),
        py::arg("lse").noconvert(), py::kw_only(), py::arg("splits"));
  m.def("attention", &attention, py::arg("arrays"), py::arg("options"), py::arg("out"),
        py::arg("lse").noconvert(), py::arg("parts"), py::kw_only(), py::arg("splits"),
        py::arg("ctas"), py::arg("simulation"));
}

}  // namespace wlib::probe
