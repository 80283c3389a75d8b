// Family prefill: INT4 keys and values, FP8 queries. Schemas, implementations and dispatch tables
// of its ops.
#include <torch/csrc/stable/library.h>

#include "prefill/attention_cuda.h"
#include "prefill/ops.h"
#include "torch/dispatch_table.h"

namespace wlib::prefill {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "append_kv_int4(Tensor k, Tensor v, Tensor slot_mapping, Tensor(a!) k_cache, Tensor(b!) "
      "v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, *, Tensor? k_mean=None, Tensor? "
      "k_smooth=None) -> ()");
  m.def(
      "quantize_q_fp8(Tensor q, *, Tensor? k_smooth=None, Tensor? cos=None, Tensor? sin=None) -> "
      "(Tensor, Tensor)");
  m.def(
      "attention_prefill(Tensor q, Tensor q_scale, Tensor k_cache, Tensor v_cache, Tensor k_scale, "
      "Tensor v_scale, Tensor page_table, Tensor seqused_k, Tensor cu_seqlens_q, *, SymInt "
      "max_seqlen_q, Tensor? k_new=None, Tensor? v_new=None, Tensor? k_new_scale=None, Tensor? "
      "v_new_scale=None, Tensor? key_mean=None, Tensor? sinks=None, float softmax_scale, bool "
      "causal=True, int window_left=-1, int window_right=-1, float softcap=0.0, int num_splits=0, "
      "ScalarType? out_dtype=None) -> (Tensor, Tensor)");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("append_kv_int4", TORCH_BOX(&append_kv));
  m.impl("quantize_q_fp8", TORCH_BOX(&quantize_queries));
  m.impl("attention_prefill", TORCH_BOX(&attention));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_prefill_dispatch() {
  static const std::string table = dispatch_table({
      {"append_kv_int4", "cpu: one token at a time\n" WLIB_CUDA_ROWS(
                             "sm_90a: sm90_append, a block of 64 slots at a time\n")},
      {"quantize_q_fp8",
       "cpu: one token and head at a time\n" WLIB_CUDA_ROWS(
           "sm_90a: sm90_quantize_queries, one token and head per head_dim / 8 threads\n")},
      {"attention_prefill",
       std::string("cpu: 64 rows by 64 keys, float32\n") + WLIB_CUDA_ROWS(attention_cuda_rows())},
  });
  return table.c_str();
}

}  // namespace wlib::prefill
