// The packed weight format, version 1, shared by packer, CPU kernel and GPU kernel.
//
// W [N, K] is cut into tiles of 64 rows x 128 columns, N and K padded. A row block of 64 rows is
// contiguous: its k tiles in order, then 64 float32 channel scales. A tile is contiguous, too, so
// that one bulk copy fetches it:
//   4096 B  codes: [2 halves][128 threads][2 steps][2 words][4 bytes], two codes per byte
//   (odd_code.h) 128 B x P  scales: [P groups][32 pairs] x {BF16 of row r, BF16 of row r + 8} 256 B
//   x P  zero points, only if there are any: the same order, float32
// P = scale groups per tile: 4, 2 or 1; groups longer than 128 repeat their scale in each of their
// tiles. Thread t's 16 bytes of a half are its A-fragment registers of wgmma m64k32 for two k
// steps: decoding needs no shuffles, and 16-byte shared loads have no bank conflicts.
#pragma once

#include "wlib/platform.h"

namespace wlib::int4 {

constexpr int kLayoutVersion = 1;
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;
constexpr int kCodeBytes = kTileRows * kTileColumns / 2;
constexpr int kGroupScaleBytes = kTileRows * 2;
constexpr int kGroupZeroBytes = kTileRows * 4;
constexpr int kChannelScaleBytes = kTileRows * 4;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Layout {
  int groups_per_tile;
  bool zero_points;

  WLIB_HOST_DEVICE constexpr int scales_offset() const { return kCodeBytes; }
  WLIB_HOST_DEVICE constexpr int zeros_offset() const {
    return kCodeBytes + groups_per_tile * kGroupScaleBytes;
  }
  WLIB_HOST_DEVICE constexpr int tile_bytes() const {
    return zeros_offset() + (zero_points ? groups_per_tile * kGroupZeroBytes : 0);
  }
  // A row block of k_tiles tiles; the channel scales follow its last tile.
  WLIB_HOST_DEVICE constexpr int64_t block_bytes(int64_t k_tiles) const {
    return k_tiles * tile_bytes() + kChannelScaleBytes;
  }
};

// Which group sizes the format expresses for a given K, and how many groups then share a tile; 0:
// none.
constexpr int groups_per_tile(int64_t group_size, int64_t k) {
  if (group_size <= 0 || k % group_size || k % 32) return 0;
  if (group_size % kTileColumns == 0 || group_size == k) return 1;
  return group_size == 64 ? 2 : group_size == 32 ? 4 : 0;
}

// Rows r and r + 8 of a 16-row slab form a pair: the two rows that one thread accumulates.
WLIB_HOST_DEVICE constexpr int scale_index(int row) {
  return (row / 16 * 8 + row % 8) * 2 + row / 8 % 2;
}

// Where a byte of codes belongs in the tile: `row` holds code a, `row + 8` code b, both at
// `column`.
struct CodePosition {
  int row, column;
};
WLIB_HOST_DEVICE constexpr CodePosition code_position(int byte) {
  const int half = byte / 2048, thread = byte / 16 % 128, step = byte / 8 % 2, word = byte / 4 % 2,
            j = byte % 4;
  return {thread / 32 * 16 + thread % 32 / 4,
          half * 64 + step * 32 + word * 16 + thread % 4 * 4 + j};
}

}  // namespace wlib::int4
