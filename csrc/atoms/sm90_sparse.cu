#include <algorithm>

#include "atoms/sm90_sparse_matmul.h"
#include "atoms/sm90_sparse_sample.h"
#include "atoms/sm90_sparse_transpose.h"
#include "atoms/sparse_cuda.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {
namespace {

// As many CTAs as are resident at a time, if there are items for them.
template <class Params>
cudaError_t launch_items(void (*kernel)(Params), int64_t items, int threads, size_t smem_bytes,
                         cudaStream_t stream, const Params& p) {
  if (items == 0) return cudaSuccess;
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(kernel, threads, int(smem_bytes), 1, &resident))
    return error;
  const dim3 grid(unsigned(std::min<int64_t>(items, resident)));
  return sm90::launch(kernel, grid, threads, int(smem_bytes), 1, stream, p);
}

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <FloatType kType>
cudaError_t launch_matmul(const SparseMatmulParams& p, cudaStream_t stream) {
  const int rows = p.transposed ? p.matrix.columns : p.matrix.rows;
  return launch_items(sparse_matmul_kernel<kType>,
                      pieces(p.tokens, kTileTokens) * pieces(rows, kOutRows), kTileThreads,
                      sizeof(SparseSmem<kType>), stream, p);
}
template <FloatType kType>
cudaError_t launch_sample(const SampleParams& p, cudaStream_t stream) {
  return launch_items(sparse_sample_kernel<kType>, p.matrix.tiles() * p.splits(), kTileThreads,
                      sizeof(SampleSmem<kType>), stream, p);
}

const char* text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* sparse_matmul_cuda(const SparseMatmulParams& p, float* values, int16_t* positions,
                               int device, void* stream) {
  if (const char* refusal = int4fp8::refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  SparseMatmulParams ordered = p;
  if (p.transposed) {
    const SparseTransposeParams transpose{p.matrix, values, positions};
    if (const cudaError_t error =
            launch_items(sparse_transpose_kernel, p.matrix.tiles(), kTransposeThreads,
                         sizeof(SparseTransposeSmem), on, transpose))
      return text(error);
    ordered.matrix.values = values;
    ordered.matrix.positions = positions;
    ordered.matrix.value_type = FloatType::kFloat32;
  }
  switch (p.type) {
    case FloatType::kFloat32: return text(launch_matmul<FloatType::kFloat32>(ordered, on));
    case FloatType::kBFloat16: return text(launch_matmul<FloatType::kBFloat16>(ordered, on));
    default: return text(launch_matmul<FloatType::kFloat16>(ordered, on));
  }
}

const char* sparse_sample_cuda(const SampleParams& p, int device, void* stream) {
  if (const char* refusal = int4fp8::refuse_device(device)) return refusal;
  const auto on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  switch (p.type) {
    case FloatType::kFloat32: error = launch_sample<FloatType::kFloat32>(p, on); break;
    case FloatType::kBFloat16: error = launch_sample<FloatType::kBFloat16>(p, on); break;
    default: error = launch_sample<FloatType::kFloat16>(p, on);
  }
  if (error == cudaSuccess && p.partials)
    error =
        launch_items(sparse_sum_kernel, pieces(p.matrix.count, kSumThreads), kSumThreads, 0, on, p);
  return text(error);
}

}  // namespace wlib::atoms
