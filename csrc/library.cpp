// Every op of wlib on one page: schemas, and one implementation for CPU and CUDA, which part ways
// behind the checks.
#include <torch/csrc/stable/library.h>

#include <string>

#include "atoms/ops.h"
#include "atoms/prng.h"
#include "atoms/rebuild.h"
#include "fp4/ops.h"
#include "int4fp8/cpu.h"
#include "int4fp8/cpu_kernels.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"
#include "prefill/ops.h"

STABLE_TORCH_LIBRARY(wlib, m) {
  // Codes, scales, the group sums if sums_group is given, the new residual if residual is given.
  m.def("fp8_quantize(Tensor x, *, int? sums_group=None) -> Tensor[]");
  m.def(
      "rms_norm_fp8_quantize(Tensor x, Tensor weight, *, float eps=1e-6, Tensor? residual=None, "
      "int? sums_group=None) -> Tensor[]");
  m.def(
      "silu_mul_fp8_quantize(Tensor gate_up, *, bool interleaved=False, int? sums_group=None) -> "
      "Tensor[]");
  m.def("fp8_group_sums(Tensor xq, int group_size) -> Tensor");
  m.def(
      "int4fp8_gemm(Tensor x, Tensor weight, Tensor x_scale, *, int n, int group_size, Tensor? "
      "bias=None, Tensor? residual=None, str activation=\"none\", Tensor? out_scale=None, Tensor? "
      "x_sums=None, ScalarType? out_dtype=None, int layout_version=1) -> Tensor");
  m.def(
      "int4fp8_gemm.out(Tensor x, Tensor weight, Tensor x_scale, *, int n, int group_size, Tensor? "
      "bias=None, Tensor? residual=None, str activation=\"none\", Tensor? out_scale=None, Tensor? "
      "x_sums=None, int layout_version=1, Tensor(a!) out) -> ()");
  m.def(
      "append_kv_int4(Tensor k, Tensor v, Tensor slot_mapping, Tensor(a!) k_cache, Tensor(b!) "
      "v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, *, Tensor? k_mean=None, Tensor? "
      "k_smooth=None) -> ()");
  m.def(
      "quantize_q_fp8(Tensor q, *, Tensor? k_smooth=None, Tensor? cos=None, Tensor? sin=None) -> "
      "(Tensor, Tensor)");
  m.def(
      "attention_prefill(Tensor q, Tensor q_scale, Tensor k_cache, Tensor v_cache, Tensor k_scale, "
      "Tensor v_scale, Tensor page_table, Tensor seqused_k, Tensor cu_seqlens_q, *, int "
      "max_seqlen_q, Tensor? k_new=None, Tensor? v_new=None, Tensor? k_new_scale=None, Tensor? "
      "v_new_scale=None, Tensor? key_mean=None, Tensor? sinks=None, float softmax_scale, bool "
      "causal=True, int window_left=-1, int window_right=-1, float softcap=0.0, int num_splits=0, "
      "ScalarType? out_dtype=None) -> (Tensor, Tensor)");
  // Weights from few numbers.
  m.def(
      "rebuild(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, ScalarType? "
      "out_dtype=None, int? seed=None) -> Tensor[]");
  m.def(
      "rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, int? seed=None, "
      "Tensor(a!)[] out) -> ()");
  // Weights from shared atoms.
  m.def(
      "atoms_reconstruct(Tensor atoms, Tensor coef, Tensor? base=None, Tensor? residual_a=None, "
      "Tensor? residual_b=None, *, float scale=1.0, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "atoms_reconstruct_backward(Tensor grad, Tensor atoms, Tensor coef, *, float scale=1.0) -> "
      "(Tensor, Tensor)");
  m.def("atoms_combine(Tensor[] tensors, Tensor coef) -> Tensor[]");

  // fp4
  m.def(
      "fp4_quantize(Tensor x, *, str format=\"mxfp4\", str axis=\"rows\", str scale_rule=\"even\", "
      "int hadamard=0, Tensor? signs=None, Tensor? global_scale=None, bool packed=True, "
      "str carrier=\"none\", int window=0, bool mask=False, bool swizzle=False) -> Tensor[]");
  m.def(
      "fp4_requantize_t(Tensor codes, Tensor scales, Tensor? old_global_scale=None, *, "
      "str format=\"mxfp4\", str scale_rule=\"even\", int hadamard=0, Tensor? signs=None, "
      "Tensor? global_scale=None, bool packed=True, str carrier=\"none\", int window=0, "
      "bool mask=False, bool swizzle=False) -> Tensor[]");
  m.def(
      "fp4_matmul(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? a_global=None, "
      "Tensor? b_global=None, *, float alpha=1.0, str mode=\"fold8\", ScalarType? out_dtype=None) "
      "-> Tensor");
  m.def("hadamard(Tensor x, int size, Tensor? signs=None, *, bool inverse=False) -> Tensor");
  m.def(
      "prng_expand(Tensor coef, int[] shape, int seed, str dist, int tensor_id, ScalarType? "
      "out_dtype=None) -> Tensor");
  m.def("prng_project(Tensor values, int count, int seed, str dist, int tensor_id) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("fp8_quantize", TORCH_BOX(&wlib::int4fp8::quantize));
  m.impl("rms_norm_fp8_quantize", TORCH_BOX(&wlib::int4fp8::rms_norm_quantize));
  m.impl("silu_mul_fp8_quantize", TORCH_BOX(&wlib::int4fp8::silu_mul_quantize));
  m.impl("fp8_group_sums", TORCH_BOX(&wlib::int4fp8::group_sums));
  m.impl("int4fp8_gemm", TORCH_BOX(&wlib::int4fp8::gemm));
  m.impl("int4fp8_gemm.out", TORCH_BOX(&wlib::int4fp8::gemm_out));
  m.impl("append_kv_int4", TORCH_BOX(&wlib::prefill::append_kv));
  m.impl("quantize_q_fp8", TORCH_BOX(&wlib::prefill::quantize_queries));
  m.impl("attention_prefill", TORCH_BOX(&wlib::prefill::attention));
  m.impl("rebuild", TORCH_BOX(&wlib::atoms::rebuild));
  m.impl("rebuild.out", TORCH_BOX(&wlib::atoms::rebuild_out));
  m.impl("atoms_reconstruct", TORCH_BOX(&wlib::atoms::reconstruct));
  m.impl("atoms_reconstruct_backward", TORCH_BOX(&wlib::atoms::reconstruct_backward));
  m.impl("atoms_combine", TORCH_BOX(&wlib::atoms::combine));

  m.impl("fp4_quantize", TORCH_BOX(&wlib::fp4::quantize));
  m.impl("fp4_requantize_t", TORCH_BOX(&wlib::fp4::requantize_t));
  m.impl("fp4_matmul", TORCH_BOX(&wlib::fp4::matmul));
  m.impl("hadamard", TORCH_BOX(&wlib::fp4::hadamard));
  m.impl("prng_expand", TORCH_BOX(&wlib::atoms::prng_expand));
  m.impl("prng_project", TORCH_BOX(&wlib::atoms::prng_project));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

#ifdef WLIB_HAS_CUDA
#define WLIB_CUDA_ROWS(rows) rows
#else
#define WLIB_CUDA_ROWS(rows) ""
#endif

// Read by python/wlib/_load.py through ctypes.
extern "C" __attribute__((visibility("default"))) const char* wlib_version() {
  return WLIB_VERSION;
}
extern "C" __attribute__((visibility("default"))) const char* wlib_build_id() {
  return WLIB_BUILD_ID;
}
extern "C" __attribute__((visibility("default"))) const char* wlib_cuda_summary() {
  return WLIB_CUDA_SUMMARY;
}
extern "C" __attribute__((visibility("default"))) const char* wlib_cpu_isa() {
  return wlib::int4fp8::cpu_kernels().isa;
}
extern "C" __attribute__((visibility("default"))) const char* wlib_fp8_quantize_rows() {
  return "cpu: one row at a time\n" WLIB_CUDA_ROWS(
      "sm_90a: sm90_quantize, 1 to 16 warps per token\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_fp8_group_sums_rows() {
  return "cpu: one row at a time\n" WLIB_CUDA_ROWS(
      "sm_90a: sm90_group_sums, one CTA per 4 tokens\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_fp4_quantize_rows() {
  return "cpu: one row, or 32 columns, at a time\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_fp4_matmul_rows() {
  return "cpu, mode exact32: multiplies codes\n"
         "cpu, mode fold8 or bf16: dequantises, then torch.mm in float32\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_hadamard_rows() {
  return "cpu: one row at a time\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_int4fp8_gemm_rows() {
  static const std::string rows =
      std::string(wlib::int4fp8::gemm_cpu_rows()) + WLIB_CUDA_ROWS(wlib::int4fp8::gemm_cuda_rows());
  return rows.c_str();
}
extern "C" __attribute__((visibility("default"))) const char* wlib_append_kv_int4_rows() {
  return "cpu: one token at a time\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_quantize_q_fp8_rows() {
  return "cpu: one token and head at a time\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_attention_prefill_rows() {
  return "cpu: 64 rows by 64 keys, float32\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_rebuild_rows() {
  return "cpu, any form: one row of the weight at a time\n" WLIB_CUDA_ROWS(
      "sm_90a, any form: sm90_rebuild, tiles of 64 x 128, all layers in one launch\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_prng_expand_rows() {
  return "cpu, any dist: bases made block by block\n" WLIB_CUDA_ROWS(
      "sm_90a, any dist: sm90_expand, a block of elements per thread\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_prng_project_rows() {
  return "cpu, any dist: one basis at a time\n";
}
extern "C" __attribute__((visibility("default"))) const char* wlib_atoms_reconstruct_rows() {
  return wlib::atoms::reconstruct_rows();
}
extern "C" __attribute__((visibility("default"))) const char*
wlib_atoms_reconstruct_backward_rows() {
  return wlib::atoms::reconstruct_backward_rows();
}
extern "C" __attribute__((visibility("default"))) const char* wlib_atoms_combine_rows() {
  return wlib::atoms::combine_rows();
}
