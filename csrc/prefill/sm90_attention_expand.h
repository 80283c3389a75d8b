// The producer warpgroup: fetches INT4 blocks, and expands them, or new FP8 keys and values, into
// the tiles that the tensor cores read. The codes stay what they are; the scales go beside them.
#pragma once

#include <cmath>

#include "prefill/sm90_attention_config.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/copy.h"
#include "wlib/sm90/half2.h"

namespace wlib::prefill {

constexpr int kProducerBarrier = 1;   // ids of named barriers; 0 is block_sync's
constexpr float kCodesPerUnit = 512;  // codes are in units of 2^-9

// All key tiles of all items of this CTA, one after the other.
struct TileWalk {
  AttentionItem item;
  int index, tile;  // of the item; of its key tiles
  bool done = false;

  WLIB_DEVICE explicit TileWalk(const AttentionKernelParams& p)
      : index(sm90::block_index_x() - sm90::grid_size_x()), tile(-1) {
    advance(p);
  }
  WLIB_DEVICE void advance(const AttentionKernelParams& p) {
    ++tile;
    while (tile >= item.end_tile) {
      index += sm90::grid_size_x();
      done = index >= p.plan.items;
      if (done) return;
      item = AttentionItem(p, index);
      tile = item.first_tile;
    }
  }
};

// One thread. New keys are read without a copy, but take their turn in the ring.
template <class C>
WLIB_DEVICE void fetch(AttentionSmem<C>& s, const AttentionKernelParams& p, const TileWalk& walk,
                       int stage) {
  uint64_t& full = s.raw_full[stage];
  if (!walk.item.tile(walk.tile).cached) return sm90::mbarrier_arrive(full);
  const int64_t page = p.page_table[walk.item.sequence * p.max_blocks + walk.tile];
  const int64_t at = page * p.kv_heads + walk.item.kv_head;
  sm90::mbarrier_arrive_expect_tx(full, 2 * (C::kRawBytes + sizeof s.raw_scale[0][0]));
  sm90::bulk_load(s.raw[stage][0], p.k_cache + at * C::kRawBytes, C::kRawBytes, full);
  sm90::bulk_load(s.raw[stage][1], p.v_cache + at * C::kRawBytes, C::kRawBytes, full);
  sm90::bulk_load(s.raw_scale[stage][0], p.k_scale + at * kKeys, sizeof s.raw_scale[0][0], full);
  sm90::bulk_load(s.raw_scale[stage][1], p.v_scale + at * kKeys, sizeof s.raw_scale[0][0], full);
}

// A run of units of 32 columns [columns / 32][kRows][16 B] -> rows of E4M3 bytes. Neighbouring
// threads take neighbouring rows: no bank conflicts when loading, nor, thanks to the swizzle, when
// storing.
template <int kRows, int kColumns>
WLIB_DEVICE void expand(const uint8_t* run, uint8_t* tile, int first_column) {
  WLIB_NO_UNROLL  // few registers
      for (int i = 0; i < kRows * kColumns / int4kv::kUnitColumns / sm90::kWarpgroupThreads; ++i) {
    const int unit = i * sm90::kWarpgroupThreads + sm90::thread_in_warpgroup();
    const int row = unit % kRows, column = first_column + unit / kRows * int4kv::kUnitColumns;
    const Unit codes = reinterpret_cast<const Unit*>(run)[unit];
    Unit first, second;
    WLIB_UNROLL
    for (int w = 0; w < 4; ++w) {
      first.word[w] = int4kv::first_bytes(codes.word[w]);
      second.word[w] = int4kv::second_bytes(codes.word[w]);
    }
    *reinterpret_cast<Unit*>(tile + swizzled(row, column, kRows)) = first;
    *reinterpret_cast<Unit*>(tile + swizzled(row, column + 16, kRows)) = second;
  }
}

// `count` rows of new keys, `pitch` bytes apart -> rows of the key tile; zeros behind them.
template <class C>
WLIB_DEVICE void copy_keys(const uint8_t* from, int pitch, int count, uint8_t* tile,
                           int first_column) {
  constexpr int kUnits = C::kHeadDim / 16;
  WLIB_NO_UNROLL
  for (int unit = sm90::thread_in_warpgroup(); unit < kKeys * kUnits;
       unit += sm90::kWarpgroupThreads) {
    const int row = unit / kUnits, column = unit % kUnits * 16;
    Unit codes = {};
    if (row < count) codes = *reinterpret_cast<const Unit*>(from + int64_t(row) * pitch + column);
    *reinterpret_cast<Unit*>(tile + swizzled(row, first_column + column, kKeys)) = codes;
  }
}

// The key of slot `slot` + j, of four neighbouring ones in the order of int4kv::value_slot: keys
// 2q, 2q + 1, 2q + 8, 2q + 9 of their sixteen.
WLIB_DEVICE constexpr int key_of_slot(int slot, int j) {
  return slot / 16 * 16 + slot % 16 / 2 + j / 2 * 8 + j % 2;
}

// Rows of new values -> columns of the value tile. A thread turns 4 x 4 bytes around.
template <class C>
WLIB_DEVICE void transpose_values(const uint8_t* from, int pitch, int count, uint8_t* tile,
                                  int first_column) {
  constexpr int kQuads = kKeys / 4;
  WLIB_NO_UNROLL
  for (int block = sm90::thread_in_warpgroup(); block < C::kHeadDim / 4 * kQuads;
       block += sm90::kWarpgroupThreads) {
    const int channel = block / kQuads * 4, slot = block % kQuads * 4;
    uint32_t rows[4];
    WLIB_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int key = key_of_slot(slot, j);
      const uint8_t* at = from + int64_t(key) * pitch + channel;
      rows[j] = key < count ? *reinterpret_cast<const uint32_t*>(at) : 0;
    }
    WLIB_UNROLL
    for (int c = 0; c < 4; ++c) {
      uint32_t column = 0;
      WLIB_UNROLL
      for (int j = 0; j < 4; ++j) column |= (rows[j] >> 8 * c & 0xff) << 8 * j;
      auto* to = tile + swizzled(channel + c, first_column + slot, C::kHeadDim);
      *reinterpret_cast<uint32_t*>(to) = column;
    }
  }
}

// Half of the warpgroup prepares the keys' scales, half the values'. The values' are divided by
// their largest, so that probabilities times them fit into E4M3; so are the keys' for FP16.
// `raw`: which of the source's stages the step has.
template <class C>
WLIB_DEVICE void prepare_scales(AttentionSmem<C>& s, const AttentionKernelParams& p,
                                const AttentionItem& item, const KeyTile& tile, int raw,
                                typename C::Scales& to) {
  const int key = sm90::thread_in_warpgroup() % kKeys, other = key ^ sm90::kWarpThreads;
  const bool values = sm90::thread_in_warpgroup() >= kKeys;
  const auto scale = [&](int of) {
    if (of >= tile.count) return 0.0f;  // nobody may look at what is behind the last key
    if (tile.cached) {
      if constexpr (C::kTokenRows)
        return s.rows[raw][values][of].scale;
      else
        return s.raw_scale[raw][values][of] * kCodesPerUnit;
    }
    const int64_t token = p.starts[item.sequence] + tile.first - item.cached + of;
    return (values ? p.v_new_scale : p.k_new_scale)[token * p.kv_heads + item.kv_head];
  };
  const float own = scale(key);
  if (!C::kHalfScores && !values) {
    to.k[key] = own;
    return;
  }
  float unit = sm90::max_or_nan(fabsf(own), fabsf(scale(other)));
  WLIB_UNROLL
  for (int mask = 16; mask > 0; mask /= 2)
    unit = sm90::max_or_nan(unit, sm90::warp_shuffle_xor(unit, mask));
  const float relative = unit == 0 ? 0.0f : own / unit;
  if constexpr (C::kHalfScores)
    (values ? to.v : to.k)[half_slot(key)] = uint16_t(sm90::pack_half2(relative, 0));
  else
    to.v[key] = relative;
  if (key > 0) return;
  if constexpr (C::kHalfScores) {
    (values ? to.unit : to.k_unit) = unit;
  } else {
    to.unit = unit;
  }
}

// New keys and values of a step.
template <class C>
WLIB_DEVICE void expand_new(const AttentionKernelParams& p, const AttentionItem& item,
                            const KeyTile& tile, uint8_t* k, uint8_t* v, int stage) {
  const int64_t token = p.starts[item.sequence] + tile.first - item.cached;
  const int64_t from = (token * p.kv_heads + item.kv_head) * C::kHeadDim;
  const int pitch = p.kv_heads * C::kHeadDim;
  copy_keys<C>(p.k_new + from, pitch, tile.count, k, key_column<C>(stage));
  transpose_values<C>(p.v_new + from, pitch, tile.count, v, value_column(stage));
}

template <class C>
WLIB_DEVICE void produce_blocks(AttentionSmem<C>& s, const AttentionKernelParams& p) {
  const bool leader = sm90::thread_in_warpgroup() == 0;
  sm90::RingCursor<C::kStages> at;
  sm90::RingCursor<C::kRawStages> raw, ahead;
  TileWalk next(p);  // what the leader fetches
  const auto fetch_next = [&] {
    if (next.done) return;
    if (leader) fetch(s, p, next, ahead.stage);
    next.advance(p);
    ahead.advance();
  };
  for (int i = 0; i < C::kRawStages - 1; ++i) fetch_next();
  for (TileWalk walk(p); !walk.done; walk.advance(p), at.advance(), raw.advance()) {
    fetch_next();  // into the stage whose readers met at the barrier below
    const KeyTile tile = walk.item.tile(walk.tile);
    uint8_t *k = s.k + key_tile<C>(at.stage), *v = s.v + value_tile<C>(at.stage);
    sm90::mbarrier_wait(s.raw_full[raw.stage], raw.parity);
    s.ring.wait_empty(at);
    if (tile.cached) {
      expand<kKeys, C::kHeadDim>(s.raw[raw.stage][0], k, key_column<C>(at.stage));
      expand<C::kHeadDim, kKeys>(s.raw[raw.stage][1], v, value_column(at.stage));
    } else {
      expand_new<C>(p, walk.item, tile, k, v, at.stage);
    }
    prepare_scales(s, p, walk.item, tile, raw.stage, s.scales[at.stage]);
    sm90::fence_proxy_async();  // what this thread wrote is for wgmma
    sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);
    if (leader) sm90::mbarrier_arrive(s.ring.full[at.stage]);
  }
}

}  // namespace wlib::prefill
