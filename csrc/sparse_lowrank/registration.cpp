// Family sparse_lowrank: weights that are low rank plus sparse. Schemas, implementations and
// dispatch tables of its ops.
#include <torch/csrc/stable/library.h>

#include "sparse_lowrank/sparse.h"
#include "torch/dispatch_table.h"

namespace wlib::sparse_lowrank {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "tile_sparse_matmul(Tensor x, Tensor values, Tensor positions, Tensor offsets, int rows, int "
      "columns, bool transposed=False, Tensor? base=None, Tensor? bias=None) -> Tensor");
  m.def(
      "tile_sampled_matmul(Tensor dy, Tensor x, Tensor positions, Tensor offsets, ScalarType? "
      "out_dtype=None) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("tile_sparse_matmul", TORCH_BOX(&sparse_matmul));
  m.impl("tile_sampled_matmul", TORCH_BOX(&sparse_sample));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_sparse_lowrank_dispatch() {
  static const std::string table = dispatch_table({
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

}  // namespace wlib::sparse_lowrank
