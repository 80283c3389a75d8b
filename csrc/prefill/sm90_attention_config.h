// The attention kernel's tiles, shared memory and items of work.
#pragma once

#include <type_traits>

#include "prefill/attention_plan.h"
#include "wlib/layout/int4_kv.h"
#include "wlib/params/prefill.h"
#include "wlib/sm90/ring.h"
#include "wlib/sm90/wgmma.h"

namespace wlib::prefill {

constexpr int kKeys = int4kv::kBlockTokens;  // of a step: one block of the cache
constexpr int kConsumerRows = 64;            // wgmma's M
constexpr int kConsumers = kTileRows / kConsumerRows;
constexpr int kSwizzleRow = 128;  // bytes

struct alignas(16) Unit {
  uint32_t word[4];
};

// Scales of a step as the consumers use them: zero for slots that hold no key.
struct StepScales {
  float k[kKeys];  // of a code
  float v[kKeys];  // of a code, divided by `unit`: at most 1
  float unit;      // the largest scale of the values, or 0
};
// The same for FP16 scores. A thread of the consumers finds the sixteen keys of its columns in a
// row, see half_slot().
struct alignas(16) HalfStepScales {
  uint16_t k[kKeys];  // bits of FP16, divided by `k_unit`: at most 1
  uint16_t v[kKeys];  // likewise, by `unit`
  float k_unit, unit;
};
WLIB_DEVICE constexpr int half_slot(int key) {
  return key % 8 / 2 * (kKeys / 4) + key / 8 * 2 + key % 2;
}

// Where a key or a value of a cache with a row per token is; null for a slot without one.
struct alignas(16) TokenRow {
  const uint8_t* codes;
  uint32_t zeros;  // its zero point in every byte
  float scale;     // of a code in units of 2^-9
};

// kHalfScores: q k^T in FP16, and its softmax on two numbers at a time. Only for cached keys:
// |q| <= 448 and codes of at most 7 * 2^-9, or 15 * 2^-9, keep a score of 256 channels below 3360,
// while FP8 keys could exceed FP16's 65504. Nor with a softcap, which is computed in FP32.
// kTokenRows: the cache's layout is int4_tokens.h.
template <int kHeadDim_, bool kHalfScores_, bool kTokenRows_>
struct AttentionConfig {
  static constexpr bool kHalfScores = kHalfScores_;
  static constexpr bool kTokenRows = kTokenRows_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kThreads = (1 + kConsumers) * sm90::kWarpgroupThreads;
  // Expanded keys and values. Three are in use (scores of the next step, softmax of this one,
  // values of the last one); the fourth is being filled.
  static constexpr int kStages = 4;
  static constexpr int kRawStages = 3;  // INT4 blocks on their way
  // Columns of the output that one wgmma makes: narrow where the output itself fills the registers.
  static constexpr int kSliceColumns = kHeadDim == 256 ? 32 : 64;
  static constexpr int kSlices = kHeadDim / kSliceColumns;
  // Whether the scores of the next step are multiplied during the softmax of this one. An output of
  // 256 columns leaves no registers for them in FP32; the other consumer's wgmmas fill the gap.
  static constexpr bool kAhead = kHalfScores || kHeadDim < 256;
  static constexpr int kProducerRegs = kHeadDim == 256 ? 40 : 56;
  static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);
  using ScoreOp = std::conditional_t<kHalfScores, typename sm90::WgmmaE4M3<kKeys>::SsHalf,
                                     typename sm90::WgmmaE4M3<kKeys>::Ss>;
  using Score = sm90::Accumulator<ScoreOp>;  // or two of them
  using Scales = std::conditional_t<kHalfScores, HalfStepScales, StepScales>;
  using ValueOp = typename sm90::WgmmaE4M3<kSliceColumns>::Rs;
  static constexpr int kScores = sm90::kAccumulators<ScoreOp>;
  static constexpr int kSliceRegs = sm90::kAccumulators<ValueOp>;
  static constexpr int kRawBytes = int(int4kv::block_bytes(kHeadDim));  // of keys, or of values
  // Rows of 128 bytes. What has only 64 shares them between an even and the following odd stage.
  static constexpr bool kHalfRows = kHeadDim < kSwizzleRow;
  static constexpr int kQueryBytes = kConsumerRows * (kHalfRows ? kSwizzleRow : kHeadDim);
  static constexpr int kKeyBytes = kKeys * kHeadDim, kValueBytes = kHeadDim * kKeys;  // of a stage
};

WLIB_HOST_DEVICE bool takes_fp16_scores(const AttentionParams& p) {
  return p.allow_fp16_scores && !p.k_new && p.softcap == 0;
}

// What the producer expands: blocks that were copied, or rows that are read where they are.
template <class C, bool kTokenRows>
struct AttentionSource {
  alignas(128) uint8_t raw[C::kRawStages][2][C::kRawBytes];  // keys, values
  alignas(128) float raw_scale[C::kRawStages][2][kKeys];
  uint64_t raw_full[C::kRawStages];
};
template <class C>
struct AttentionSource<C, true> {
  TokenRow rows[2][2][kKeys];  // of the step that is expanded and the next one; keys, values
};

template <class C>
struct AttentionSmem : AttentionSource<C, C::kTokenRows> {
  alignas(1024) uint8_t q[kConsumers][C::kQueryBytes];
  alignas(1024) uint8_t k[C::kStages * C::kKeyBytes];
  alignas(1024) uint8_t v[C::kStages * C::kValueBytes];
  typename C::Scales scales[C::kStages];
  sm90::Ring<C::kStages> ring;  // expanded
};

// Byte of a swizzled tile of 128-byte rows; columns beyond 128 are in further tiles of `rows` rows.
WLIB_DEVICE constexpr int swizzled(int row, int column, int rows) {
  return column / kSwizzleRow * rows * kSwizzleRow + row * kSwizzleRow +
         (column % kSwizzleRow ^ row % 8 * 16);
}
// Where an expanded stage begins, and at which column of the rows.
template <class C>
WLIB_DEVICE int key_tile(int stage) {
  return C::kHalfRows ? stage / 2 * 2 * C::kKeyBytes : stage * C::kKeyBytes;
}
template <class C>
WLIB_DEVICE int key_column(int stage) {
  return C::kHalfRows ? stage % 2 * kSwizzleRow / 2 : 0;
}
template <class C>
WLIB_DEVICE int value_tile(int stage) {
  return stage / 2 * 2 * C::kValueBytes;
}
WLIB_DEVICE int value_column(int stage) { return stage % 2 * kSwizzleRow / 2; }

struct AttentionKernelParams : AttentionParams {
  AttentionPlan plan;
  // Of each part if there are several: float32 [splits, tokens, heads, head_dim], [splits, heads,
  // tokens].
  float *part_out, *part_lse;
};

// 64 keys: a block of the cache, or as many of the new ones.
struct KeyTile {
  int first, count;  // position of the first one in the sequence; how many there are
  bool cached;
};

// A tile of queries of one sequence and KV head, and the part of its keys.
struct AttentionItem {
  int sequence, kv_head, split;
  int first_query, rows, group;
  int queries, cached, keys;
  int first_token;           // row of `q` of the tile's first query
  int first_tile, end_tile;  // key tiles: blocks of the cache, then those of new keys

  WLIB_DEVICE AttentionItem() : first_tile(0), end_tile(0) {}
  WLIB_DEVICE AttentionItem(const AttentionKernelParams& p, int index) {
    split = index % p.plan.splits;
    index /= p.plan.splits;
    kv_head = index % p.kv_heads;
    index /= p.kv_heads;
    sequence = index % p.batch;
    group = p.heads / p.kv_heads;
    queries = p.starts[sequence + 1] - p.starts[sequence];
    // The last queries see the most keys: longest first, in every sequence.
    const int tile = (queries - 1) / p.plan.positions - index / p.batch;
    first_query = tile * p.plan.positions;
    const int left = queries - first_query;
    const int positions = left < p.plan.positions ? left : p.plan.positions;
    rows = tile >= 0 && queries > 0 ? positions * group : 0;
    first_token = p.starts[sequence] + first_query;
    cached = p.cached[sequence];
    keys = cached + (p.k_new ? queries : 0);
    first_tile = end_tile = 0;
    if (rows == 0) return;
    const int begin = int(range(p, 0).begin), end = int(range(p, positions - 1).end);
    if (begin >= end) return;
    const int first = tile_of(begin), count = tile_of(end - 1) + 1 - first;
    // Fits: fewer than 2^25 tiles of 64 keys, at most 32 parts.
    first_tile = first + count * split / p.plan.splits;
    end_tile = first + count * (split + 1) / p.plan.splits;
  }
  // Keys that the tile's query number `position` sees.
  WLIB_DEVICE KeyRange range(const AttentionKernelParams& p, int position) const {
    return visible_keys(first_query + position, queries, keys, p.causal, p.window_left,
                        p.window_right);
  }
  WLIB_DEVICE int cached_tiles() const { return (cached + kKeys - 1) / kKeys; }
  WLIB_DEVICE int tile_of(int key) const {
    return key < cached ? key / kKeys : cached_tiles() + (key - cached) / kKeys;
  }
  WLIB_DEVICE KeyTile tile(int index) const {
    const bool in_cache = index < cached_tiles();
    const int first = in_cache ? index * kKeys : cached + (index - cached_tiles()) * kKeys;
    const int left = (in_cache ? cached : keys) - first;
    return {first, left < kKeys ? left : kKeys, in_cache};
  }
  // Row of q, q_scale and out that belongs to row `row` of the tile, counted in heads.
  WLIB_DEVICE int64_t query(const AttentionKernelParams& p, int row) const {
    return int64_t(first_token + row / group) * p.heads + kv_head * group + row % group;
  }
};

}  // namespace wlib::prefill
