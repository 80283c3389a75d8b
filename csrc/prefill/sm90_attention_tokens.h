// The producer warpgroup for a cache with a row per token and a zero point per row
// (layout/int4_tokens.h). Zero points go into the expanded bytes, exactly, so that the consumers
// are those of any other cache.
//
// Rows lie at multiples of four bytes, which no bulk copy takes; threads read them where they are.
// A thread finds one row of the next step, and asks L2 for it, while this step is expanded.
#pragma once

#include "prefill/sm90_attention_expand.h"
#include "wlib/layout/int4_tokens.h"

namespace wlib::prefill {

// This thread's row of a step: a key's in the first half of the warpgroup, else a value's.
template <class C>
WLIB_DEVICE void find_row(AttentionSmem<C>& s, const AttentionKernelParams& p, const TileWalk& walk,
                          int stage) {
  const int key = sm90::thread_in_warpgroup() % kKeys;
  const bool values = sm90::thread_in_warpgroup() >= kKeys;
  const KeyTile tile = walk.item.tile(walk.tile);
  TokenRow row = {};
  if (tile.cached && key < tile.count) {  // nobody may look at what is behind the last key
    const int position = tile.first + key, token = position % p.block_tokens;
    const int64_t page =
        p.page_table[walk.item.sequence * p.max_blocks + position / p.block_tokens];
    const auto offset = [&](const RowStrides& stride) {
      return row_offset(stride, page, token, walk.item.kv_head);
    };
    row.codes = values ? p.v_cache + offset(p.v_rows) : p.k_cache + offset(p.k_rows);
    const float stored = values ? p.v_scale[offset(p.v_scale_rows) / int64_t(sizeof(float))]
                                : p.k_scale[offset(p.k_scale_rows) / int64_t(sizeof(float))];
    row.zeros = int4tokens::zero_point(stored) * int4tokens::kEveryByte;
    row.scale = int4tokens::scale_of_row(stored) * kCodesPerUnit;
    constexpr int kSector = 32;
    WLIB_UNROLL
    for (int byte = 0; byte < C::kHeadDim / 2; byte += kSector)
      sm90::prefetch_global(row.codes + byte);
    sm90::prefetch_global(row.codes + C::kHeadDim / 2 - 1);
  }
  s.rows[stage][values][key] = row;
}

// Eight channels of a row, as they are stored.
WLIB_DEVICE uint32_t load_codes(const TokenRow& row, int word) {
  return row.codes ? reinterpret_cast<const uint32_t*>(row.codes)[word] : 0;
}
WLIB_DEVICE uint32_t even_bytes(uint32_t codes, const TokenRow& row) {
  return int4tokens::subtract_zeros(codes & int4tokens::kNibbles, row.zeros);
}
WLIB_DEVICE uint32_t odd_bytes(uint32_t codes, const TokenRow& row) {
  return int4tokens::subtract_zeros(codes >> 4 & int4tokens::kNibbles, row.zeros);
}

// Neighbouring threads take neighbouring words of a row; each stays with its words' columns, some
// rows at a time so that their loads are in flight together.
template <class C>
WLIB_DEVICE void expand_key_rows(const TokenRow (&rows)[kKeys], uint8_t* tile, int first_column) {
  constexpr int kWords = C::kHeadDim / 8, kApart = sm90::kWarpgroupThreads / kWords, kAtOnce = 4;
  const int word = sm90::thread_in_warpgroup() % kWords;
  WLIB_NO_UNROLL
  for (int first = sm90::thread_in_warpgroup() / kWords; first < kKeys; first += kAtOnce * kApart) {
    uint32_t codes[kAtOnce];
    WLIB_UNROLL
    for (int i = 0; i < kAtOnce; ++i) codes[i] = load_codes(rows[first + i * kApart], word);
    WLIB_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int key = first + i * kApart;
      const uint32_t even = even_bytes(codes[i], rows[key]), odd = odd_bytes(codes[i], rows[key]);
      auto* to = tile + swizzled(key, first_column + word * 8, kKeys);
      *reinterpret_cast<uint2*>(to) = {sm90::permute_bytes(even, odd, 0x5140),
                                       sm90::permute_bytes(even, odd, 0x7362)};
    }
  }
}

// Four rows of four bytes -> their columns.
WLIB_DEVICE void transpose(uint32_t (&x)[4]) {
  const uint32_t a = sm90::permute_bytes(x[0], x[1], 0x5140),
                 b = sm90::permute_bytes(x[0], x[1], 0x7362),
                 c = sm90::permute_bytes(x[2], x[3], 0x5140),
                 d = sm90::permute_bytes(x[2], x[3], 0x7362);
  x[0] = sm90::permute_bytes(a, c, 0x5410);
  x[1] = sm90::permute_bytes(a, c, 0x7632);
  x[2] = sm90::permute_bytes(b, d, 0x5410);
  x[3] = sm90::permute_bytes(b, d, 0x7632);
}

// Rows of values -> columns of the value tile, four neighbouring slots of eight channels per
// thread. A warp has 8 x 4 of them: between 4 x 8, which is better to load, and 16 x 2, to store.
template <class C>
WLIB_DEVICE void expand_value_rows(const TokenRow (&rows)[kKeys], uint8_t* tile, int first_column) {
  constexpr int kItems = kKeys / 4 * (C::kHeadDim / 8);
  WLIB_NO_UNROLL
  for (int item = sm90::thread_in_warpgroup(); item < kItems; item += sm90::kWarpgroupThreads) {
    const int slot = (item % 8 + item / 32 % 2 * 8) * 4, word = item / 8 % 4 + item / 64 * 4;
    uint32_t codes[4], bytes[4];
    const auto row = [&](int j) -> const TokenRow& { return rows[key_of_slot(slot, j)]; };
    WLIB_UNROLL
    for (int j = 0; j < 4; ++j) codes[j] = load_codes(row(j), word);
    WLIB_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      WLIB_UNROLL
      for (int j = 0; j < 4; ++j)
        bytes[j] = odd ? odd_bytes(codes[j], row(j)) : even_bytes(codes[j], row(j));
      transpose(bytes);
      WLIB_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int channel = word * 8 + 2 * c + odd;
        auto* to = tile + swizzled(channel, first_column + slot, C::kHeadDim);
        *reinterpret_cast<uint32_t*>(to) = bytes[c];
      }
    }
  }
}

template <class C>
WLIB_DEVICE void produce_rows(AttentionSmem<C>& s, const AttentionKernelParams& p) {
  const bool leader = sm90::thread_in_warpgroup() == 0;
  sm90::RingCursor<C::kStages> at;
  TileWalk next(p);  // whose rows are looked up
  int rows = 0;      // stage of those that are expanded
  const auto find_next = [&](int stage) {
    if (next.done) return;
    find_row(s, p, next, stage);
    next.advance(p);
  };
  find_next(rows);
  sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);
  for (TileWalk walk(p); !walk.done; walk.advance(p), at.advance(), rows ^= 1) {
    find_next(rows ^ 1);  // whose readers met at the barrier below
    const KeyTile tile = walk.item.tile(walk.tile);
    uint8_t *k = s.k + key_tile<C>(at.stage), *v = s.v + value_tile<C>(at.stage);
    s.ring.wait_empty(at);
    if (tile.cached) {
      expand_key_rows<C>(s.rows[rows][0], k, key_column<C>(at.stage));
      expand_value_rows<C>(s.rows[rows][1], v, value_column(at.stage));
    } else {
      expand_new<C>(p, walk.item, tile, k, v, at.stage);
    }
    prepare_scales(s, p, walk.item, tile, rows, s.scales[at.stage]);
    sm90::fence_proxy_async();  // what this thread wrote is for wgmma
    sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);
    if (leader) sm90::mbarrier_arrive(s.ring.full[at.stage]);
  }
}

}  // namespace wlib::prefill
