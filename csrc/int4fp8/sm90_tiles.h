// Which tiles of y there are, and what each of them covers: for one weight, or for a stack of
// experts whose tokens lie one after the other.
//
// How many tokens an expert has is known on the device only. So every CTA counts the experts' token
// blocks first (count_blocks) and then looks a tile up by its number. An expert's tiles are whole:
// the tokens that a tile has beyond the expert's last one are computed and not stored.
#pragma once

#include "int4fp8/sm90_params.h"
#include "wlib/sm90/platform.h"
#include "wlib/sm90/sync.h"

namespace wlib::int4fp8 {

// In shared memory; not touched for one weight.
struct ExpertTable {
  int blocks[kMaxExperts + 1];  // token blocks of the experts before
  int begin[kMaxExperts + 1];   // first token
};

WLIB_DEVICE bool is_grouped(const KernelParams& p) { return p.expert_offsets != nullptr; }

// Within x, whatever the offsets say: wrong ones must not lead outside.
WLIB_DEVICE int expert_offset(const KernelParams& p, int expert) {
  const int64_t offset = p.wide_offsets ? static_cast<const int64_t*>(p.expert_offsets)[expert]
                                        : static_cast<const int32_t*>(p.expert_offsets)[expert];
  return offset < 0 ? 0 : offset > p.m ? p.m : int(offset);
}

// By one warp; a barrier hands the table to the others.
WLIB_DEVICE void count_blocks(const KernelParams& p, int tokens, ExpertTable& table) {
  const int lane = sm90::lane_index();
  int total = 0;
  for (int first = 0; first < p.experts; first += sm90::kWarpThreads) {
    const int expert = first + lane;
    const bool exists = expert < p.experts;
    const int begin = exists ? expert_offset(p, expert) : 0;
    const int end = exists ? expert_offset(p, expert + 1) : 0;
    int blocks = begin < end ? (end - begin + tokens - 1) / tokens : 0;
    for (int distance = 1; distance < sm90::kWarpThreads; distance *= 2) {
      const int before = int(sm90::warp_shuffle(uint32_t(blocks), (lane - distance) & 31));
      if (lane >= distance) blocks += before;
    }
    blocks += total;  // up to and with this expert's
    if (exists) {
      table.blocks[expert + 1] = blocks;
      table.begin[expert] = begin;
      if (expert + 1 == p.experts) table.begin[expert + 1] = end;
    }
    total = int(sm90::warp_shuffle(uint32_t(blocks), sm90::kWarpThreads - 1));
  }
  if (lane == 0) table.blocks[0] = 0;
}

// All tiles, where the rows of one weight make `row_tiles` of them.
WLIB_DEVICE int tile_count(const KernelParams& p, const ExpertTable& table, int row_tiles) {
  return (is_grouped(p) ? table.blocks[p.experts] : p.token_blocks) * row_tiles;
}

// One tile. Tokens vary fastest within a band of `band` token blocks, so that CTAs that run side by
// side read the same weights, and a band's activations stay in L2.
struct TokenTile {
  int expert;
  int row_tile;                // within the expert's weight
  int first_token, end_token;  // end_token: of the expert, perhaps inside the tile

  WLIB_DEVICE TokenTile(const KernelParams& p, const ExpertTable& table, int index, int tokens,
                        int row_tiles, int band)
      : expert(0), first_token(0), end_token(p.m) {
    int token_blocks = p.token_blocks;
    if (is_grouped(p)) {
      expert = find_expert(p, table, index / row_tiles);
      first_token = table.begin[expert];
      end_token = table.begin[expert + 1];
      token_blocks = table.blocks[expert + 1] - table.blocks[expert];
      index -= table.blocks[expert] * row_tiles;
    }
    if (band > token_blocks) band = token_blocks;
    const int per_band = row_tiles * band, first = index / per_band * band;
    const int left = token_blocks - first, width = left < band ? left : band;
    row_tile = index % per_band / width;
    first_token += (first + index % per_band % width) * tokens;
  }

 private:
  // Whose token block is number `block` of all.
  static WLIB_DEVICE int find_expert(const KernelParams& p, const ExpertTable& table, int block) {
    int low = 0, high = p.experts;  // blocks[low] <= block < blocks[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (table.blocks[middle] <= block)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

// Row block `block` of an expert's packed weight.
WLIB_DEVICE const uint8_t* packed_rows(const KernelParams& p, int4::Layout layout, int expert,
                                       int block) {
  return p.weight + (int64_t(expert) * p.row_blocks + block) * layout.block_bytes(p.k_tiles);
}

}  // namespace wlib::int4fp8
