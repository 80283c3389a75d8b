#include <algorithm>

#include "atoms/rebuild_cuda.h"
#include "atoms/sm90_rebuild.h"
#include "int4fp8/sm90_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {
namespace {

constexpr int kFew = 8,
              kMany = 280;  // layers of a launch; a kernel parameter has at most 32764 bytes
static_assert(sizeof(RebuildTable<kMany>) <= 32764);

template <int kCapacity>
cudaError_t launch(std::span<const RebuildLayer> layers, int tiles, uint32_t first_number,
                   Rounding rounding, cudaStream_t stream) {
  RebuildTable<kCapacity> table;
  std::copy(layers.begin(), layers.end(), table.layers);
  table.count = int32_t(layers.size());
  table.tiles = tiles;
  table.first_number = first_number;
  table.rounding = rounding;
  int resident = 0;
  if (const cudaError_t error = sm90::resident_clusters(rebuild_kernel<kCapacity>, kRebuildThreads,
                                                        sizeof(RebuildSmem), 1, &resident))
    return error;
  return sm90::launch(rebuild_kernel<kCapacity>, dim3(unsigned(std::min(tiles, resident))),
                      kRebuildThreads, sizeof(RebuildSmem), 1, stream, table);
}

}  // namespace

const char* rebuild_cuda(std::span<RebuildLayer> layers, Rounding rounding, int device,
                         void* stream) {
  if (const char* refusal = int4fp8::refuse_device(device)) return refusal;
  for (size_t first = 0; first < layers.size(); first += kMany) {
    const auto part = layers.subspan(first, std::min<size_t>(kMany, layers.size() - first));
    int64_t tiles = 0;
    for (RebuildLayer& layer : part) {
      layer.first_tile = int32_t(tiles);
      if (layer.rows > 0 && layer.columns > 0) tiles += RebuildView(layer).tiles();
      if (tiles >= int64_t(1) << 30) return "more than 2^30 tiles of 64 x 128 in one launch";
    }
    if (tiles == 0) continue;
    const auto run = part.size() <= kFew ? launch<kFew> : launch<kMany>;
    const cudaError_t error =
        run(part, int(tiles), uint32_t(first), rounding, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace wlib::atoms
