// Family atoms: weights from shared atoms. Schemas, implementations and dispatch tables of its ops.
#include <torch/csrc/stable/library.h>

#include "atoms/linear.h"
#include "atoms/ops.h"
#include "torch/dispatch_table.h"

namespace wlib::atoms {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "atoms_reconstruct(Tensor atoms, Tensor coef, Tensor? base=None, Tensor? residual_a=None, "
      "Tensor? residual_b=None, *, float scale=1.0, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "atoms_reconstruct_backward(Tensor grad, Tensor atoms, Tensor coef, *, float scale=1.0) -> "
      "(Tensor, Tensor)");
  m.def(
      "atoms_step_(Tensor grad, Tensor(a!) atoms, Tensor coef, Tensor(b!) exp_avg, Tensor(c!)? "
      "exp_avg_sq, *, str rule, float scale=1.0, float lr, float beta1, float beta2, float "
      "eps=1e-8, float weight_decay=0.0, int step=1) -> Tensor");
  m.def("atoms_combine(Tensor[] tensors, Tensor coef) -> Tensor[]");
  m.def(
      "atoms_linear(Tensor x, Tensor atoms, Tensor coef, Tensor? bias=None, Tensor? base=None, *, "
      "int? n=None, int? group_size=None, int layout_version=1) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("atoms_reconstruct", TORCH_BOX(&reconstruct));
  m.impl("atoms_reconstruct_backward", TORCH_BOX(&reconstruct_backward));
  m.impl("atoms_step_", TORCH_BOX(&atoms_step));
  m.impl("atoms_combine", TORCH_BOX(&combine));
  m.impl("atoms_linear", TORCH_BOX(&linear));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_atoms_dispatch() {
  static const std::string table = dispatch_table({
      {"atoms_reconstruct",
       "cpu, any layers: blocks of 256 elements of all layers\n" WLIB_CUDA_ROWS(
           "sm_90a, any layers: sm90_reconstruct, tiles of 1024 elements of all layers\n")},
      {"atoms_reconstruct_backward",
       "cpu, any layers: blocks of 256 elements of all layers, both gradients\n" WLIB_CUDA_ROWS(
           "sm_90a, any layers: sm90_backward, tiles of 512 elements of all layers, both "
           "gradients; "
           "sm90_finish\n")},
      {"atoms_step_",
       "cpu, any rule: blocks of 256 elements of all layers\n" WLIB_CUDA_ROWS(
           "sm_90a, any rule: sm90_backward, tiles of 512 elements of all layers; sm90_finish\n")},
      {"atoms_combine",
       "cpu, any lists: blocks of 256 elements of all lists\n" WLIB_CUDA_ROWS(
           "sm_90a, P + S <= 3072: sm90_combine, tiles of 1024 elements of all lists\n")},
      {"atoms_linear",
       "cpu, any M: matmul in the type of the sums\n" WLIB_CUDA_ROWS(
           "sm_90a, M <= 64 or coefficients per token, 16-bit x, K a multiple of 8 or of 16 (FP8): "
           "sm90_linear, 128 rows x 64 tokens; sm90_linear_sum\n"
           "sm_90a, INT4 atoms, 16-bit x: sm90_linear, 192 rows x 32 tokens; sm90_linear_sum\n"
           "sm_90a, one set of coefficients: sm90_reconstruct, then torch's matmul\n")},
  });
  return table.c_str();
}

}  // namespace wlib::atoms
