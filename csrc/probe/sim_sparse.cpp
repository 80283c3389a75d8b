// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_sparse.h"

#include "atoms/sm90_sparse_matmul.h"
#include "atoms/sm90_sparse_sample.h"
#include "atoms/sm90_sparse_transpose.h"

namespace wlib::atoms {
namespace {

using Buffers = std::vector<sim::Buffer>;

// Calls run with the type as a constant.
template <class F>
sim::Report with_constant(FloatType type, F run) {
  switch (type) {
    case FloatType::kFloat32: return run.template operator()<FloatType::kFloat32>();
#ifndef WLIB_SIM_ONLY_SMALL  // mutants run with two types
    case FloatType::kFloat16: return run.template operator()<FloatType::kFloat16>();
#endif
    default: return run.template operator()<FloatType::kBFloat16>();
  }
}

}  // namespace

sim::Report simulate_sparse_matmul(const SparseMatmulParams& p, int ctas, const Buffers& buffers,
                                   const sim::Options& options) {
  return with_constant(p.type, [&]<FloatType kType>() {
    const sim::LaunchConfig config{{ctas, 1, 1}, kTileThreads, sizeof(SparseSmem<kType>)};
    return sim::launch(config, options, buffers, sparse_matmul_kernel<kType>, p);
  });
}

sim::Report simulate_sparse_transpose(const TileSparse& matrix, float* values, int16_t* positions,
                                      int ctas, const Buffers& buffers,
                                      const sim::Options& options) {
  const SparseTransposeParams p{matrix, values, positions};
  const sim::LaunchConfig config{{ctas, 1, 1}, kTransposeThreads, sizeof(SparseTransposeSmem)};
  return sim::launch(config, options, buffers, sparse_transpose_kernel, p);
}

sim::Report simulate_sparse_sample(const SampleParams& p, int ctas, const Buffers& buffers,
                                   const sim::Options& options) {
  return with_constant(p.type, [&]<FloatType kType>() {
    const sim::LaunchConfig config{{ctas, 1, 1}, kTileThreads, sizeof(SampleSmem<kType>)};
    return sim::launch(config, options, buffers, sparse_sample_kernel<kType>, p);
  });
}

sim::Report simulate_sparse_sum(const SampleParams& p, int ctas, const Buffers& buffers,
                                const sim::Options& options) {
  const sim::LaunchConfig config{{ctas, 1, 1}, kSumThreads, 0};
  return sim::launch(config, options, buffers, sparse_sum_kernel, p);
}

}  // namespace wlib::atoms
