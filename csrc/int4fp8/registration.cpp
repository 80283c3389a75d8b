// Family int4fp8: INT4 weights, FP8 activations. Schemas, implementations and dispatch tables of
// its ops.
#include <torch/csrc/stable/library.h>

#include "int4fp8/cpu.h"
#include "int4fp8/cuda.h"
#include "int4fp8/gemm_plan.h"
#include "int4fp8/ops.h"
#include "torch/dispatch_table.h"

namespace wlib::int4fp8 {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
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
      "x_sums=None, ScalarType? out_dtype=None, int layout_version=1, bool prefetch_weight=False) "
      "-> Tensor");
  m.def(
      "int4fp8_gemm.out(Tensor x, Tensor weight, Tensor x_scale, *, int n, int group_size, Tensor? "
      "bias=None, Tensor? residual=None, str activation=\"none\", Tensor? out_scale=None, Tensor? "
      "x_sums=None, int layout_version=1, bool prefetch_weight=False, Tensor(a!) out) -> ()");
  m.def(
      "int4fp8_gemm_grouped(Tensor x, Tensor weight, Tensor x_scale, Tensor expert_offsets, *, int "
      "n, int group_size, Tensor? bias=None, Tensor? residual=None, str activation=\"none\", "
      "Tensor? out_scale=None, Tensor? x_sums=None, ScalarType? out_dtype=None, int "
      "layout_version=1) -> Tensor");
  m.def(
      "int4fp8_gemm_grouped.out(Tensor x, Tensor weight, Tensor x_scale, Tensor expert_offsets, *, "
      "int n, int group_size, Tensor? bias=None, Tensor? residual=None, str activation=\"none\", "
      "Tensor? out_scale=None, Tensor? x_sums=None, int layout_version=1, Tensor(a!) out) -> ()");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("fp8_quantize", TORCH_BOX(&quantize));
  m.impl("rms_norm_fp8_quantize", TORCH_BOX(&rms_norm_quantize));
  m.impl("silu_mul_fp8_quantize", TORCH_BOX(&silu_mul_quantize));
  m.impl("fp8_group_sums", TORCH_BOX(&group_sums));
  m.impl("int4fp8_gemm", TORCH_BOX(&gemm));
  m.impl("int4fp8_gemm.out", TORCH_BOX(&gemm_out));
  m.impl("int4fp8_gemm_grouped", TORCH_BOX(&gemm_grouped));
  m.impl("int4fp8_gemm_grouped.out", TORCH_BOX(&gemm_grouped_out));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_int4fp8_dispatch() {
  static const std::string quantizer =
      "cpu: one row at a time\n" WLIB_CUDA_ROWS("sm_90a: sm90_quantize, 1 to 16 warps per token\n");
  static const std::string table = dispatch_table({
      {"fp8_quantize", quantizer},
      {"rms_norm_fp8_quantize", quantizer},
      {"silu_mul_fp8_quantize", quantizer},
      {"fp8_group_sums", "cpu: one row at a time\n" WLIB_CUDA_ROWS(
                             "sm_90a: sm90_group_sums, one CTA per 4 tokens\n")},
      {"int4fp8_gemm", std::string(gemm_cpu_rows()) + WLIB_CUDA_ROWS(gemm_cuda_rows())},
      {"int4fp8_gemm_grouped", "cpu: one expert after the other, each as int4fp8_gemm does\n" +
                                   std::string(WLIB_CUDA_ROWS(gemm_grouped_cuda_rows()))},
  });
  return table.c_str();
}

// Which tiles int4fp8_gemm takes beyond 64 tokens on the 132 SMs of an H100 or H200.
WLIB_EXPORT const char* wlib_int4fp8_tiles() {
  static const std::string table = large_plan_table(132);
  return table.c_str();
}

}  // namespace wlib::int4fp8
