#include <algorithm>

#include "cuda_device.h"
#include "sparse_lowrank/sm90_sparse_matmul.h"
#include "sparse_lowrank/sm90_sparse_matmul_mma.h"
#include "sparse_lowrank/sm90_sparse_sample.h"
#include "sparse_lowrank/sm90_sparse_sample_mma.h"
#include "sparse_lowrank/sm90_sparse_transpose.h"
#include "sparse_lowrank/sparse_cuda.h"
#include "wlib/sm90/launch.h"

namespace wlib::sparse_lowrank {
namespace {

// As many clusters as are resident at a time, if there are items for them.
template <class Params>
cudaError_t launch_items(void (*kernel)(Params), int64_t items, int threads, size_t smem_bytes,
                         cudaStream_t stream, const Params& p, int cluster = 1) {
  if (items == 0) return cudaSuccess;
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(kernel, threads, int(smem_bytes), cluster, &resident))
    return error;
  const dim3 grid(unsigned(std::min<int64_t>(items, resident)) * cluster);
  return sm90::launch(kernel, grid, threads, int(smem_bytes), cluster, stream, p);
}

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

const char* text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr const char* kNoMap = "cuTensorMapEncodeTiled failed";

// Float32: the transpose's values in its own order first.
cudaError_t launch_matmul(SparseMatmulParams p, float* values, int16_t* positions,
                          cudaStream_t stream) {
  if (p.transposed) {
    const SparseTransposeParams transpose{p.matrix, values, positions};
    if (const cudaError_t error =
            launch_items(sparse_transpose_kernel, p.matrix.tiles(), kTransposeThreads,
                         sizeof(SparseTransposeSmem), stream, transpose))
      return error;
    p.matrix.values = values;
    p.matrix.positions = positions;
    p.matrix.value_type = FloatType::kFloat32;
  }
  const int rows = p.transposed ? p.matrix.columns : p.matrix.rows;
  return launch_items(sparse_matmul_kernel, pieces(p.tokens, kTileTokens) * pieces(rows, kOutRows),
                      kTileThreads, sizeof(SparseSmem), stream, p);
}

}  // namespace

const char* sparse_matmul_cuda(const SparseMatmulParams& p, float* values, int16_t* positions,
                               int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.type == FloatType::kFloat32) return text(launch_matmul(p, values, positions, on));
  SparseProductParams product;
  if (!make_product_params(p, &product)) return kNoMap;
  const auto kernel = p.type == FloatType::kBFloat16
                          ? sparse_matmul_mma_kernel<FloatType::kBFloat16>
                          : sparse_matmul_mma_kernel<FloatType::kFloat16>;
  return text(launch_items(kernel, product.items(), kMmaThreads, sizeof(ProductSmem), on, product));
}

const char* sparse_sample_cuda(const SampleParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (p.type == FloatType::kFloat32) {
    error = launch_items(sparse_sample_kernel, p.matrix.tiles() * p.splits(), kTileThreads,
                         sizeof(SampleSmem), on, p);
  } else {
    SparseSampleParams params;
    if (!make_sample_params(p, &params)) return kNoMap;
    const auto kernel = p.type == FloatType::kBFloat16
                            ? sparse_sample_mma_kernel<FloatType::kBFloat16>
                            : sparse_sample_mma_kernel<FloatType::kFloat16>;
    error =
        launch_items(kernel, params.items(), kMmaThreads, sizeof(SampleMmaSmem), on, params, kPair);
  }
  if (error == cudaSuccess && p.partials)
    error =
        launch_items(sparse_sum_kernel, pieces(p.matrix.count, kSumThreads), kSumThreads, 0, on, p);
  return text(error);
}

}  // namespace wlib::sparse_lowrank
