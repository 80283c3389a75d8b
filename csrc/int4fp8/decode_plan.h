// How many CTAs split K. Host only, no CUDA: a pure function of the shape and of what the GPU can
// hold.
#pragma once

namespace wlib::int4fp8 {

struct DecodePlan {
  int split_log2 = 0;  // CTAs per cluster: 1, 2, 4 or 8
  int clusters = 1;    // resident at a time
};

// Time of the longest-running cluster, in k tiles. A cluster also spends kItemTiles on adding up
// and storing an item.
constexpr int decode_cost(int row_blocks, int k_tiles, int split, int clusters) {
  constexpr int kItemTiles = 2;
  const int rounds = (row_blocks + clusters - 1) / clusters;
  return rounds * ((k_tiles + split - 1) / split + kItemTiles);
}

// resident(split, &clusters) asks the GPU how many clusters of `split` CTAs run at once; its errors
// are passed on. The tokens do not enter, apart from the tile: the split, and with it the order of
// summation, is the same for every number of tokens that the tile serves.
template <class Resident>
auto plan_decode(int row_blocks, int k_tiles, int tokens, const Resident& resident,
                 DecodePlan* plan) -> decltype(resident(1, nullptr)) {
  int best = -1;
  for (int log2 = 0; log2 < 4 && 1 << log2 <= tokens; ++log2) {
    if (log2 > 0 && 1 << log2 > k_tiles) break;  // every CTA needs a tile
    int clusters = 0;
    if (const auto error = resident(1 << log2, &clusters)) return error;
    if (clusters < 1) continue;
    const int cost = decode_cost(row_blocks, k_tiles, 1 << log2, clusters);
    if (best < 0 || cost < best) {
      best = cost;
      *plan = {log2, clusters};
    }
  }
  return {};
}

}  // namespace wlib::int4fp8
