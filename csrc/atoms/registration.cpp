// Family atoms: weights from shared atoms, small factors, cores or a seed. Schemas, implementations
// and dispatch tables of its ops.
#include <torch/csrc/stable/library.h>

#include "atoms/linear.h"
#include "atoms/ops.h"
#include "atoms/prng.h"
#include "atoms/rebuild.h"
#include "atoms/sparse.h"
#include "torch/dispatch_table.h"

namespace wlib::atoms {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "rebuild(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, ScalarType? "
      "out_dtype=None, int? seed=None) -> Tensor[]");
  m.def(
      "rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, int? seed=None, "
      "Tensor(a!)[] out) -> ()");
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
  m.def(
      "prng_expand(Tensor coef, int[] shape, int seed, str dist, int tensor_id, ScalarType? "
      "out_dtype=None) -> Tensor");
  m.def("prng_project(Tensor values, int count, int seed, str dist, int tensor_id) -> Tensor");
  m.def(
      "tile_sparse_matmul(Tensor x, Tensor values, Tensor positions, Tensor offsets, int rows, int "
      "columns, bool transposed=False, Tensor? base=None, Tensor? bias=None) -> Tensor");
  m.def(
      "tile_sampled_matmul(Tensor dy, Tensor x, Tensor positions, Tensor offsets, ScalarType? "
      "out_dtype=None) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("rebuild", TORCH_BOX(&rebuild));
  m.impl("rebuild.out", TORCH_BOX(&rebuild_out));
  m.impl("atoms_reconstruct", TORCH_BOX(&reconstruct));
  m.impl("atoms_reconstruct_backward", TORCH_BOX(&reconstruct_backward));
  m.impl("atoms_step_", TORCH_BOX(&atoms_step));
  m.impl("atoms_combine", TORCH_BOX(&combine));
  m.impl("atoms_linear", TORCH_BOX(&linear));
  m.impl("prng_expand", TORCH_BOX(&prng_expand));
  m.impl("prng_project", TORCH_BOX(&prng_project));
  m.impl("tile_sparse_matmul", TORCH_BOX(&sparse_matmul));
  m.impl("tile_sampled_matmul", TORCH_BOX(&sparse_sample));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_atoms_dispatch() {
  static const std::string table = dispatch_table({
      {"rebuild",
       "cpu, any form: one row of the weight at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, low rank and hadamard above rank 16, 16-bit base and result: sm90_rebuild, "
           "tensor cores, tiles of 64 x 128, all layers in one launch\n"
           "sm_90a, any other: sm90_rebuild, fused multiply-adds, tiles of 64 x 128, all layers in "
           "one launch\n")},
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
      {"prng_expand", "cpu, any dist: bases made block by block\n" WLIB_CUDA_ROWS(
                          "sm_90a, any dist: sm90_expand, a block of elements per thread\n")},
      {"prng_project",
       "cpu, any dist: one basis at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, any dist: sm90_project, bases of a chunk of elements; sm90_finish\n")},
      {"tile_sparse_matmul",
       "cpu: 16 tokens at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, 16-bit: sm90_sparse_matmul_mma, 128 tokens x 256 outputs\n"
           "sm_90a, float32: sm90_sparse_matmul, 128 tokens x 256 outputs; for the transpose "
           "sm90_sparse_transpose before it\n")},
      {"tile_sampled_matmul",
       "cpu: 16 tokens at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, 16-bit: sm90_sparse_sample_mma, 256 x 256 values' places in pairs; "
           "sm90_sparse_sum "
           "adds "
           "up runs of tokens\n"
           "sm_90a, float32: sm90_sparse_sample, a tile and 2048 tokens; sm90_sparse_sum adds up "
           "more\n")},
  });
  return table.c_str();
}

}  // namespace wlib::atoms
