// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_sparse.h"

#include "sparse_lowrank/sm90_sparse_matmul.h"
#include "sparse_lowrank/sm90_sparse_matmul_mma.h"
#include "sparse_lowrank/sm90_sparse_sample.h"
#include "sparse_lowrank/sm90_sparse_sample_mma.h"
#include "sparse_lowrank/sm90_sparse_transpose.h"

namespace wlib::sparse_lowrank {
namespace {

using Buffers = std::vector<sim::Buffer>;

template <class Params>
sim::Report launch(void (*kernel)(Params), int ctas, int threads, size_t smem_bytes,
                   const sim::Options& options, const Buffers& buffers, const Params& p,
                   int cluster = 1) {
  return sim::launch({{ctas * cluster, 1, 1}, threads, smem_bytes, cluster}, options, buffers,
                     kernel, p);
}

}  // namespace

sim::Report simulate_sparse_matmul(const SparseMatmulParams& p, int ctas, const Buffers& buffers,
                                   const sim::Options& options) {
  if (p.type == FloatType::kFloat32)
    return launch(sparse_matmul_kernel, ctas, kTileThreads, sizeof(SparseSmem), options, buffers,
                  p);
  SparseProductParams product;
  make_product_params(p, &product);
  auto kernel = sparse_matmul_mma_kernel<FloatType::kBFloat16>;
#ifndef WLIB_SIM_ONLY_SMALL  // mutants run with one of the 16-bit types
  if (p.type == FloatType::kFloat16) kernel = sparse_matmul_mma_kernel<FloatType::kFloat16>;
#endif
  return launch(kernel, ctas, kMmaThreads, sizeof(ProductSmem), options, buffers, product);
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
  if (p.type == FloatType::kFloat32)
    return launch(sparse_sample_kernel, ctas, kTileThreads, sizeof(SampleSmem), options, buffers,
                  p);
  SparseSampleParams sample;
  make_sample_params(p, &sample);
  auto kernel = sparse_sample_mma_kernel<FloatType::kBFloat16>;
#ifndef WLIB_SIM_ONLY_SMALL
  if (p.type == FloatType::kFloat16) kernel = sparse_sample_mma_kernel<FloatType::kFloat16>;
#endif
  return launch(kernel, ctas, kMmaThreads, sizeof(SampleMmaSmem), options, buffers, sample, kPair);
}

sim::Report simulate_sparse_sum(const SampleParams& p, int ctas, const Buffers& buffers,
                                const sim::Options& options) {
  const sim::LaunchConfig config{{ctas, 1, 1}, kSumThreads, 0};
  return sim::launch(config, options, buffers, sparse_sum_kernel, p);
}

}  // namespace wlib::sparse_lowrank
