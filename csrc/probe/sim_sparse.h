// The kernels on sparse matrices in the simulator.
#pragma once

#include <vector>

#include "sim/api.h"
#include "wlib/params/sparse_lowrank.h"

namespace wlib::sparse_lowrank {

// `ctas` CTAs, or pairs of them, share the items of each kernel.
sim::Report simulate_sparse_matmul(const SparseMatmulParams& p, int ctas,
                                   const std::vector<sim::Buffer>& buffers,
                                   const sim::Options& options);
// Fills values [count] and positions [count].
sim::Report simulate_sparse_transpose(const TileSparse& matrix, float* values, int16_t* positions,
                                      int ctas, const std::vector<sim::Buffer>& buffers,
                                      const sim::Options& options);
sim::Report simulate_sparse_sample(const SampleParams& p, int ctas,
                                   const std::vector<sim::Buffer>& buffers,
                                   const sim::Options& options);
sim::Report simulate_sparse_sum(const SampleParams& p, int ctas,
                                const std::vector<sim::Buffer>& buffers,
                                const sim::Options& options);

}  // namespace wlib::sparse_lowrank
