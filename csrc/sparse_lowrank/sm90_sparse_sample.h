// Products of two activations at the places of a sparse matrix: values[i] = <dy[:, n_i], x[:,
// k_i]>.
//
// A CTA takes a tile and a run of 2048 tokens. Both sides' activations pass through shared memory,
// 128 tokens at a time; a warp owns up to 64 values, a lane sums every value over four tokens of
// the 128, and in the end the lanes add up. More tokens leave partial sums, which a second kernel
// adds in their order: the result depends on the sizes alone.
#pragma once

#include "sparse_lowrank/sm90_token_tile.h"
#include "wlib/sm90/sync.h"

namespace wlib::sparse_lowrank {

constexpr int kWarpValues = 64;
constexpr int kPassValues = kTileThreads / sm90::kWarpThreads * kWarpValues;
constexpr int kGroup = 4;  // values whose places a warp reads together

struct SampleSmem {
  TokenTile x, dy;
  sm90::Quad places[kPassValues / kGroup];  // where(column) of x, where(row) of dy above it
};

using SampleSums = float[kWarpValues];

// Adds the products of four tokens of the lane to the sums of the warp's `share` values.
WLIB_DEVICE void add_samples(const SampleSmem& s, int first, int share, SampleSums& sums) {
  const int lane = sm90::lane_index();
  WLIB_UNROLL
  for (int group = 0; group < kWarpValues / kGroup; ++group) {
    if (group * kGroup >= share) break;
    const sm90::Quad places = s.places[first / kGroup + group];
    WLIB_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const auto x = s.x.chunk[(places.word[i] & 0xffff) ^ lane];
      const auto dy = s.dy.chunk[places.word[i] >> 16 ^ lane];
      float& sum = sums[group * kGroup + i];
      WLIB_UNROLL
      for (int t = 0; t < kLaneTokens; ++t) sum = fmaf(dy.token[t], x.token[t], sum);
    }
  }
}

// The sums over all lanes of values first .. first + 31, one per lane: half of them go to the other
// half of the lanes, five times.
WLIB_DEVICE float sum_over_lanes(SampleSums& sums, int first) {
  constexpr int kHalf = sm90::kWarpThreads / 2;
  WLIB_UNROLL
  for (int step = 0; step < 5; ++step) {
    const int width = kHalf >> step;
    const bool upper = sm90::lane_index() & width;
    WLIB_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      if (i >= width) continue;
      float& low = sums[first + i];
      const float high = sums[first + i + width];
      const float kept = upper ? high : low, sent = upper ? low : high;
      low = kept + sm90::warp_shuffle_xor(sent, width);
    }
  }
  return sums[first];
}

// The sums of values first .. first + kPassValues - 1 of a tile over the tokens of a split.
WLIB_DEVICE void sample_pass(SampleSmem& s, const SampleParams& p, int64_t tile, int64_t split,
                             int64_t begin, int count) {
  const int row = int(tile / p.matrix.column_tiles()) * kSparseTile;
  const int column = int(tile % p.matrix.column_tiles()) * kSparseTile;
  const TokenRows dy{p.dy, p.dy_stride, p.tokens, p.matrix.rows};
  const TokenRows x{p.x, p.x_stride, p.tokens, p.matrix.columns};
  sm90::block_sync();  // the last pass's reads
  for (int i = sm90::thread_index(); i < kPassValues; i += kTileThreads) {
    const int16_t position = i < count ? p.matrix.positions[begin + i] : int16_t(0);
    s.places[i / kGroup].word[i % kGroup] =
        uint32_t(TokenTile::where(column_of(position)) | TokenTile::where(row_of(position)) << 16);
  }
  // Whole groups, as many for each warp; places beyond the last value are those of the first.
  constexpr int kStep = kPassValues / kWarpValues * kGroup;
  const int share = ((count < kPassValues ? count : kPassValues) + kStep - 1) / kStep * kGroup;
  const int first = sm90::warp_index() * share;
  SampleSums sums = {};
  const int64_t last = (split + 1) * p.run();
  const int64_t end = last < p.tokens ? last : p.tokens;
  for (int64_t token = split * p.run(); token < end; token += kTileTokens) {
    sm90::block_sync();  // the last tokens' reads
    s.dy.copy(dy, token, row);
    s.x.copy(x, token, column);
    sm90::block_sync();
    add_samples(s, first, share, sums);
  }
  WLIB_UNROLL
  for (int half = 0; half < kWarpValues; half += sm90::kWarpThreads) {
    const float sum = sum_over_lanes(sums, half);
    const int lane = half + sm90::lane_index(), own = first + lane;
    if (lane >= share || own >= count) continue;
    if (p.partials)
      p.partials[split * p.matrix.count + begin + own] = sum;
    else
      sm90::store_float(p.values, p.matrix.value_type, begin + own, sum);
  }
}

WLIB_KERNEL(kTileThreads)
sparse_sample_kernel(WLIB_GRID_CONSTANT SampleParams p) {
  auto& s = sm90::dynamic_smem<SampleSmem>();
  const int64_t tiles = p.matrix.tiles();
  for (int64_t item = sm90::block_index_x(); item < tiles * p.splits();
       item += sm90::grid_size_x()) {
    const int64_t tile = item % tiles, end = p.matrix.offsets[tile + 1];
    for (int64_t begin = p.matrix.offsets[tile]; begin < end; begin += kPassValues)
      sample_pass(s, p, tile, item / tiles, begin, int(end - begin));
  }
}

constexpr int kSumThreads = 256;

// Adds up the splits' partial sums.
WLIB_KERNEL(kSumThreads) sparse_sum_kernel(WLIB_GRID_CONSTANT SampleParams p) {
  const int64_t splits = p.splits();
  for (int64_t i = int64_t(sm90::block_index_x()) * kSumThreads + sm90::thread_index();
       i < p.matrix.count; i += int64_t(sm90::grid_size_x()) * kSumThreads) {
    float sum = p.partials[i];
    for (int64_t split = 1; split < splits; ++split) sum += p.partials[split * p.matrix.count + i];
    sm90::store_float(p.values, p.matrix.value_type, i, sum);
  }
}

}  // namespace wlib::sparse_lowrank
