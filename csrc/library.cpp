// Every op of wlib on one page: schemas, and one implementation for CPU and CUDA, which part ways
// behind the checks.
#include <torch/csrc/stable/library.h>

#include <string>

#include "int4fp8/cpu.h"
#include "int4fp8/cpu_kernels.h"
#include "int4fp8/cuda.h"
#include "int4fp8/ops.h"

STABLE_TORCH_LIBRARY(wlib, m) {
  m.def("fp8_quantize(Tensor x) -> (Tensor, Tensor)");
  m.def("fp8_group_sums(Tensor xq, int group_size) -> Tensor");
  m.def(
      "int4fp8_gemm(Tensor x, Tensor weight, Tensor x_scale, *, int n, int group_size, Tensor? "
      "bias=None, "
      "ScalarType? out_dtype=None, int layout_version=1) -> Tensor");
  m.def(
      "int4fp8_gemm.out(Tensor x, Tensor weight, Tensor x_scale, *, int n, int group_size, Tensor? "
      "bias=None, "
      "int layout_version=1, Tensor(a!) out) -> ()");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("fp8_quantize", TORCH_BOX(&wlib::int4fp8::quantize));
  m.impl("fp8_group_sums", TORCH_BOX(&wlib::int4fp8::group_sums));
  m.impl("int4fp8_gemm", TORCH_BOX(&wlib::int4fp8::gemm));
  m.impl("int4fp8_gemm.out", TORCH_BOX(&wlib::int4fp8::gemm_out));
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
  return "cpu: one row at a time\n" WLIB_CUDA_ROWS("sm_90a: sm90_quantize, one CTA per token\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_fp8_group_sums_rows() {
  return "cpu: one row at a time\n" WLIB_CUDA_ROWS(
      "sm_90a: sm90_group_sums, one CTA per 4 tokens\n");
}
extern "C" __attribute__((visibility("default"))) const char* wlib_int4fp8_gemm_rows() {
  static const std::string rows =
      std::string(wlib::int4fp8::gemm_cpu_rows()) + WLIB_CUDA_ROWS(wlib::int4fp8::gemm_cuda_rows());
  return rows.c_str();
}
