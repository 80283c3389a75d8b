// How many CTAs split K. No CUDA: a pure function of the shape and of what the GPU can hold.
#pragma once

#include <cstdint>

#include "wlib/layout/int4_tile.h"

namespace wlib::int4fp8 {

// By the token tile: consumer warpgroups, and stages of each one's ring. They keep about 125 KB in
// flight.
constexpr int decode_consumers(int tokens) { return tokens <= 16 ? 4 : 2; }
constexpr int decode_stages(int tokens) { return tokens == 8 ? 6 : tokens == 32 ? 8 : 5; }

// Do a CTA's activations fit into the stages of its rings, all of its share of K at once? Then they
// are fetched once, for all items.
constexpr bool activations_fit(int64_t k_tiles, int split, int consumers, int stages) {
  return int4::ceil_div(k_tiles, split) <= int64_t(consumers) * stages;
}

struct DecodePlan {
  int split_log2 = 0;  // CTAs per cluster: 1, 2, 4 or 8
  int clusters = 1;    // resident at a time
};

// Cycles of an SM in which memory brings it a tile of weights: the roofline of the design page.
constexpr int64_t kTileCycles = 212;

// Cycles of the longest-running cluster: its tiles at the pace of the memory or of the tensor
// cores, or what it fetches at the pace of the L2, and for each item the sums that meet.
// `shared`: all items take the same activations, which may then stay.
constexpr int64_t decode_cost(int row_blocks, int k_tiles, int tokens, int split, int clusters,
                              bool shared = true) {
  constexpr int64_t kL2BytesPerCycle = 32;  // of one SM while all fetch; assumed, half of its port
  constexpr int64_t kItemCycles = 2 * kTileCycles;
  constexpr int64_t kTileBytes = int4::Layout{1, false}.tile_bytes();
  const int64_t multiply = 4 * tokens;  // tensor cores: twice four wgmmas of tokens / 2 cycles
  const int64_t items = int4::ceil_div(row_blocks, clusters);
  const int64_t share = int4::ceil_div(k_tiles, split), tiles = items * share;
  const bool once =
      shared && activations_fit(k_tiles, split, decode_consumers(tokens), decode_stages(tokens));
  const int64_t bytes = tiles * kTileBytes + (once ? share : tiles) * tokens * int4::kTileColumns;
  const int64_t compute = tiles * (multiply > kTileCycles ? multiply : kTileCycles);
  const int64_t fetch = int4::ceil_div(bytes, kL2BytesPerCycle);
  return (compute > fetch ? compute : fetch) + items * kItemCycles;
}

// resident(split, &clusters) asks the GPU how many clusters of `split` CTAs run at once; its errors
// are passed on. The tokens do not enter, apart from the tile: the split, and with it the order of
// summation, is the same for every number of tokens that the tile serves.
template <class Resident>
auto plan_decode(int row_blocks, int k_tiles, int tokens, const Resident& resident,
                 DecodePlan* plan, bool shared = true) -> decltype(resident(1, nullptr)) {
  int64_t best = -1;
  for (int log2 = 0; log2 < 4 && 1 << log2 <= tokens; ++log2) {
    if (log2 > 0 && 1 << log2 > k_tiles) break;  // every CTA needs a tile
    int clusters = 0;
    if (const auto error = resident(1 << log2, &clusters)) return error;
    if (clusters < 1) continue;
    const int64_t cost = decode_cost(row_blocks, k_tiles, tokens, 1 << log2, clusters, shared);
    if (best < 0 || cost < best) {
      best = cost;
      *plan = {log2, clusters};
    }
  }
  return {};
}

}  // namespace wlib::int4fp8
