// Which kernel of wlib::rebuild takes which layers, and how many in a launch.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "rebuild/sm90_rebuild.h"

namespace wlib::rebuild {

constexpr int kFewLayers = 8, kManyLayers = 272;            // that a kernel's table holds
static_assert(sizeof(RebuildTable<kManyLayers>) <= 32764);  // bytes of a kernel's parameters

// More ranks than the base's traffic hides in FMAs, and a rounding that hides the split.
inline bool by_tensor_cores(const RebuildLayer& l) {
  constexpr int kFusedRank = 16;
  const bool forms = l.form == RebuildForm::kLowRank || l.form == RebuildForm::kHadamard;
  const bool narrow =
      l.out_type != FloatType::kFloat32 && !(l.w0 != nullptr && l.w0_type == FloatType::kFloat32);
  return forms && narrow && std::max(l.rank1, l.rank2) > kFusedRank;
}

struct RebuildLaunch {
  std::vector<RebuildLayer> layers;  // with their numbers in the call and first tiles
  int64_t tiles = 0;
  bool tensor_cores = false;
};

inline std::vector<RebuildLaunch> plan_rebuild(std::span<const RebuildLayer> layers) {
  std::vector<RebuildLaunch> launches;
  for (const bool tensor_cores : {false, true}) {
    RebuildLaunch* last = nullptr;
    for (size_t i = 0; i < layers.size(); ++i) {
      RebuildLayer layer = layers[i];
      if (by_tensor_cores(layer) != tensor_cores || layer.rows == 0 || layer.columns == 0) continue;
      if (!last || last->layers.size() == kManyLayers)
        last = &launches.emplace_back(RebuildLaunch{{}, 0, tensor_cores});
      layer.number = int32_t(i);
      layer.first_tile = int32_t(last->tiles);
      last->tiles += RebuildView(layer).tiles();
      last->layers.push_back(layer);
    }
  }
  return launches;
}

}  // namespace wlib::rebuild
