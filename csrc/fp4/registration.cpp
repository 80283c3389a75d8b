// Family fp4: FP4 operands of training matmuls. Schemas, implementations and dispatch tables of its
// ops.
#include <torch/csrc/stable/library.h>

#include "fp4/block_scaled.h"
#include "fp4/matmul_cuda.h"
#include "fp4/ops.h"
#include "fp4/quantize_cuda.h"
#include "torch/dispatch_table.h"

namespace wlib::fp4 {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "fp4_quantize(Tensor x, *, str format=\"mxfp4\", str axis=\"rows\", str scale_rule=\"even\", "
      "int hadamard=0, Tensor? signs=None, Tensor? global_scale=None, bool packed=True, "
      "str carrier=\"none\", int window=0, bool mask=False, bool swizzle=False, "
      "bool square=False, str rounding=\"nearest\", Tensor? seed=None, int offset=0) -> Tensor[]");
  m.def(
      "fp4_requantize_t(Tensor codes, Tensor scales, Tensor? old_global_scale=None, *, "
      "str format=\"mxfp4\", str scale_rule=\"even\", int hadamard=0, Tensor? signs=None, "
      "Tensor? global_scale=None, bool packed=True, str carrier=\"none\", int window=0, "
      "bool mask=False, bool swizzle=False, bool square=False, str rounding=\"nearest\", "
      "Tensor? seed=None, int offset=0) -> Tensor[]");
  m.def(
      "fp4_matmul(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? a_global=None, "
      "Tensor? b_global=None, *, float alpha=1.0, str mode=\"fold8\", ScalarType? out_dtype=None) "
      "-> Tensor");
  m.def("fp4_signs(Tensor seed, int size, *, int offset=0) -> Tensor");
  m.def("hadamard(Tensor x, int size, Tensor? signs=None, *, bool inverse=False) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("fp4_quantize", TORCH_BOX(&quantize));
  m.impl("fp4_requantize_t", TORCH_BOX(&requantize_t));
  m.impl("fp4_matmul", TORCH_BOX(&matmul));
  m.impl("fp4_signs", TORCH_BOX(&signs));
  m.impl("hadamard", TORCH_BOX(&hadamard));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_fp4_dispatch() {
  static const std::string quantizer =
      std::string("cpu: one row, or 32 columns, at a time\n") +
      WLIB_CUDA_ROWS(quantize_cuda_rows(
          "sm90_quantize, tiles of 128 x 128; with a window then sm90_join and sm90_fold, for a "
          "global scale first sm90_scan and sm90_join"));
  static const std::string table = dispatch_table({
      {"fp4_quantize", quantizer},
      {"fp4_requantize_t", quantizer},
      {"fp4_matmul", std::string("cpu, mode exact32: multiplies codes\n"
                                 "cpu, other modes: dequantises, then torch.mm in float32\n") +
                         WLIB_CUDA_ROWS(matmul_cuda_rows()) +
                         WLIB_CUDA_ROWS(block_scaled_cuda_rows())},
      {"fp4_signs",
       std::string("cpu: one draw\n") + WLIB_CUDA_ROWS(quantize_cuda_rows("sm90_signs"))},
      {"hadamard", std::string("cpu: one row at a time\n") +
                       WLIB_CUDA_ROWS(quantize_cuda_rows("sm90_hadamard, tiles of 128 x 128"))},
  });
  return table.c_str();
}

}  // namespace wlib::fp4
