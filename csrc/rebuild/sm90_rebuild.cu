#include <algorithm>

#include "cuda_device.h"
#include "rebuild/rebuild_cuda.h"
#include "rebuild/rebuild_plan.h"
#include "rebuild/sm90_rebuild_fused.h"
#include "rebuild/sm90_rebuild_tensor.h"
#include "wlib/sm90/launch.h"

namespace wlib::rebuild {
namespace {

template <class Products, int kCapacity>
cudaError_t launch(const RebuildLaunch& one, Rounding rounding, cudaStream_t stream) {
  RebuildTable<kCapacity> table;
  std::copy(one.layers.begin(), one.layers.end(), table.layers);
  table.count = int32_t(one.layers.size());
  table.tiles = int32_t(one.tiles);
  table.rounding = rounding;
  constexpr auto kKernel = rebuild_kernel<Products, kCapacity>;
  constexpr int kSmemBytes = sizeof(typename Products::Smem);
  int resident = 0;
  if (const cudaError_t error =
          sm90::resident_clusters(kKernel, kRebuildThreads, kSmemBytes, 1, &resident))
    return error;
  return sm90::launch(kKernel, dim3(unsigned(std::min(table.tiles, resident))), kRebuildThreads,
                      kSmemBytes, 1, stream, table);
}

template <class Products>
cudaError_t launch(const RebuildLaunch& one, Rounding rounding, cudaStream_t stream) {
  const bool few = one.layers.size() <= kFewLayers;
  return few ? launch<Products, kFewLayers>(one, rounding, stream)
             : launch<Products, kManyLayers>(one, rounding, stream);
}

}  // namespace

const char* rebuild_cuda(std::span<const RebuildLayer> layers, Rounding rounding, int device,
                         void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const std::vector<RebuildLaunch> launches = plan_rebuild(layers);
  for (const RebuildLaunch& one : launches) {
    if (one.tiles >= int64_t(1) << 30) return "more than 2^30 tiles of 64 x 128 in one launch";
  }
  for (const RebuildLaunch& one : launches) {
    const auto run = one.tensor_cores ? launch<TensorProducts> : launch<FusedProducts>;
    if (const cudaError_t error = run(one, rounding, static_cast<cudaStream_t>(stream)))
      return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace wlib::rebuild
