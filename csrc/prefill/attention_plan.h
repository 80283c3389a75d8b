// How attention is cut into items, and how many parts the keys are split into. No CUDA: pure
// functions of what the host knows without asking the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "wlib/layout/int4_kv.h"

namespace wlib::prefill {

constexpr int kTileRows = 128;  // queries of a tile: positions x the heads that share their keys
constexpr int kMaxSplits = 32;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int tile_positions(int group) { return kTileRows / group; }

struct AttentionPlan {
  int positions;    // of a tile
  int query_tiles;  // of the longest sequence
  int splits;       // parts of the keys
  int64_t items;    // tiles of all sequences and KV heads, times splits
};

// Steps of 64 keys that the busiest SM makes, with what an item and the combination of the parts
// cost besides, in the same unit.
constexpr int64_t split_cost(int64_t tiles, int64_t steps, int splits, int sms) {
  constexpr int64_t kItemSteps = 4, kCombineSteps = 8;
  const int64_t rounds = ceil_div(tiles * splits, sms);
  return rounds * (ceil_div(steps, splits) + kItemSteps) + (splits > 1 ? kCombineSteps : 0);
}

// The cheapest number of parts, the smallest of equals; each has at least four steps of 64 keys.
// `steps` is an upper bound: the lengths themselves are on the device.
constexpr int choose_splits(int64_t tiles, int64_t steps, int sms) {
  int best = 1;
  for (int splits = 2; splits <= kMaxSplits && steps >= 4 * splits; ++splits) {
    if (split_cost(tiles, steps, splits, sms) < split_cost(tiles, steps, best, sms)) best = splits;
  }
  return best;
}

// `max_blocks` of a sequence's cached keys, `max_new` keys behind them; splits 0 chooses.
constexpr AttentionPlan plan_attention(int batch, int kv_heads, int group, int max_queries,
                                       int64_t max_blocks, int64_t max_new, int splits, int sms) {
  AttentionPlan plan{};
  plan.positions = tile_positions(group);
  plan.query_tiles = int(ceil_div(max_queries, plan.positions));
  const int64_t tiles = int64_t(plan.query_tiles) * batch * kv_heads;
  const int64_t steps = max_blocks + ceil_div(max_new, int4kv::kBlockTokens);
  plan.splits = splits ? std::min(splits, kMaxSplits) : choose_splits(tiles, steps, sms);
  plan.items = tiles * plan.splits;
  return plan;
}

}  // namespace wlib::prefill
