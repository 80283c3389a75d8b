// Family rebuild: weights from small factors, cores or a seed. Schemas, implementations and
// dispatch tables of its ops.
#include <torch/csrc/stable/library.h>

#include "rebuild/prng.h"
#include "rebuild/rebuild.h"
#include "torch/dispatch_table.h"

namespace wlib::rebuild {

STABLE_TORCH_LIBRARY_FRAGMENT(wlib, m) {
  m.def(
      "rebuild(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, ScalarType? "
      "out_dtype=None, int? seed=None) -> Tensor[]");
  m.def(
      "rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, float[] scales, *, int? seed=None, "
      "Tensor(a!)[] out) -> ()");
  m.def(
      "prng_expand(Tensor coef, int[] shape, int seed, str dist, int tensor_id, ScalarType? "
      "out_dtype=None) -> Tensor");
  m.def("prng_project(Tensor values, int count, int seed, str dist, int tensor_id) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("rebuild", TORCH_BOX(&rebuild));
  m.impl("rebuild.out", TORCH_BOX(&rebuild_out));
  m.impl("prng_expand", TORCH_BOX(&prng_expand));
  m.impl("prng_project", TORCH_BOX(&prng_project));
}
STABLE_TORCH_LIBRARY_IMPL(wlib, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(wlib, CUDA, m) { implement(m); }

WLIB_EXPORT const char* wlib_rebuild_dispatch() {
  static const std::string table = dispatch_table({
      {"rebuild",
       "cpu, any form: one row of the weight at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, low rank and hadamard above rank 16, 16-bit base and result: sm90_rebuild, "
           "tensor cores, tiles of 64 x 128, all layers in one launch\n"
           "sm_90a, any other: sm90_rebuild, fused multiply-adds, tiles of 64 x 128, all layers in "
           "one launch\n")},
      {"prng_expand", "cpu, any dist: bases made block by block\n" WLIB_CUDA_ROWS(
                          "sm_90a, any dist: sm90_expand, a block of elements per thread\n")},
      {"prng_project",
       "cpu, any dist: one basis at a time\n" WLIB_CUDA_ROWS(
           "sm_90a, any dist: sm90_project, bases of a chunk of elements; sm90_finish\n")},
  });
  return table.c_str();
}

}  // namespace wlib::rebuild
