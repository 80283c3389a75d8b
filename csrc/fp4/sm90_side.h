// One side of a tile, its rows or its columns, on the way to FP4: which values a thread has,
// rotated, and the largest ones of blocks and lanes.
#pragma once

#include "fp4/sm90_tile.h"

namespace wlib::fp4 {

struct QuantizeLaunch {
  QuantizeParams side[2];  // of one source
  int sides;
};

// The rows and columns of a side that a unit stands for.
struct Place {
  int64_t row, column;
  WLIB_DEVICE Place(const QuantizeParams& p, Corner corner, Unit unit)
      : row((p.transpose ? corner.column : corner.row) + unit.line),
        column((p.transpose ? corner.row : corner.column) + unit.block * kUnit) {}
  WLIB_DEVICE bool inside(const QuantizeParams& p) const {
    return row < p.rows() && column < p.columns();
  }
};

WLIB_DEVICE void take_unit(const QuantizeParams& p, TileSmem& s, Unit unit, float (&x)[kUnit]) {
  read_unit(s, unit, p.transpose, x);
  if (p.signs) flip_signs(s.signs[unit.block], x);
  if (p.hadamard) rotate(p.hadamard, x);
}

template <int kFirst>
WLIB_DEVICE void take_block(const float (&x)[kUnit], float (&block)[kNvBlock]) {
  WLIB_UNROLL
  for (int i = 0; i < kNvBlock; ++i) block[i] = x[kFirst + i];
}

WLIB_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Over the lanes whose index differs in the bits from `from` to below `to`.
WLIB_DEVICE uint32_t largest_of_lanes(uint32_t value, int from, int to) {
  for (int lanes = from; lanes < to; lanes *= 2)
    value = larger(value, sm90::warp_shuffle_xor(value, lanes));
  return value;
}

struct BlockPair {
  uint32_t first, second;
};
WLIB_DEVICE BlockPair largest_of_blocks(const float (&x)[kUnit]) {
  float first[kNvBlock], second[kNvBlock];
  take_block<0>(x, first);
  take_block<kNvBlock>(x, second);
  return {largest_bits(first), largest_bits(second)};
}

// Loads the CTA's tile of the source and what rotates it.
WLIB_DEVICE Corner start_tile(const QuantizeParams& p, TileSmem& s) {
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
  const Corner corner(sm90::block_index_x(), quantize_tiles(p.source.columns));
  load_tile(p.source, corner, s);
  load_signs(p.signs, p.hadamard, s);
  sm90::block_sync();
  return corner;
}

}  // namespace wlib::fp4
