// FP4 quantisation of tiles of 128 x 128 values, along rows, columns or both: rotate, find the
// scales, round, pack. Bits are the CPU's.
//
// A scale may depend on more than its block: with a window, on the largest scale of the row; in
// nvfp4 on the largest magnitude of all. Then two kernels go before: one that finds these of every
// tile, one that joins them.
#pragma once

#include "fp4/sm90_tile.h"
#include "wlib/layout/scales_128x4.h"
#include "wlib/sm90/bits.h"

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
  WLIB_DEVICE bool inside(const QuantizeParams& p, int64_t of_column) const {
    return row < p.rows() && of_column < p.columns();
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

// Over the lanes whose index differs in a bit of `lanes` (a mask of neighbouring ones).
WLIB_DEVICE uint32_t largest_of_lanes(uint32_t value, int from, int to) {
  for (int lanes = from; lanes < to; lanes *= 2)
    value = larger(value, sm90::warp_shuffle_xor(value, lanes));
  return value;
}

// --- rounding ---

// Eight codes in each word, the first in the lowest bits; `element` is the number of x[0] in the
// quantised matrix.
template <int N>
WLIB_DEVICE void encode(const QuantizeParams& p, const float (&x)[N], float multiplier,
                        int64_t element, uint32_t (&words)[N / 8]) {
  static_assert(kRoundingBlock == 8);
  if (p.rounding != Rounding::kStochastic) {
    WLIB_UNROLL
    for (int i = 0; i < N; ++i) {
      const uint32_t code = float_to_e2m1(x[i] * multiplier);
      words[i / 8] = i % 8 ? words[i / 8] | code << i % 8 * 4 : code;
    }
  } else {
    const RoundingKey key = p.key();
    WLIB_UNROLL
    for (int w = 0; w < N / 8; ++w) {
      const Draw d = rounding_draw(key, uint64_t(element) / 8 + w);
      words[w] = 0;
      WLIB_UNROLL
      for (int j = 0; j < 8; ++j)
        words[w] |= float_to_e2m1_stochastic(x[8 * w + j] * multiplier, code_bits(d, j)) << j * 4;
    }
  }
}

// Bit i: |x[i] * multiplier| < 6.
template <int N>
WLIB_DEVICE uint32_t mask_of(const float (&x)[N], float multiplier) {
  uint32_t bits = 0;
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) bits |= uint32_t(fabsf(x[i] * multiplier) < kE2M1Max) << i;
  return bits;
}

// The carrier's bytes of four codes in the lower half of a word: PRMT looks up four magnitudes at
// once; asked for a sign, it repeats it.
WLIB_DEVICE uint32_t carrier_bytes(CarrierTable table, uint32_t codes) {
  const uint32_t magnitudes = sm90::permute_bytes(table.low, table.high, codes & 0x7777u);
  const uint32_t signs = sm90::permute_bytes(0x80808080u, 0x80808080u, codes & 0x8888u);
  return magnitudes | (signs << 7 & 0x80808080u);
}

WLIB_DEVICE void store_carrier(const QuantizeParams& p, int64_t at, int d, bool is_nan,
                               const uint32_t (&words)[kUnit / 8]) {
  const CarrierTable table = carrier_table(p.carrier, d);
  const uint32_t nan = carrier_nan(p.carrier) * 0x01010101u;
  WLIB_UNROLL
  for (int i = 0; i < kUnit / 16; ++i) {
    const uint32_t a = words[2 * i], b = words[2 * i + 1];
    uint4 bytes{carrier_bytes(table, a), carrier_bytes(table, a >> 16), carrier_bytes(table, b),
                carrier_bytes(table, b >> 16)};
    if (is_nan) bytes = uint4{nan, nan, nan, nan};
    *reinterpret_cast<uint4*>(p.out.carrier + at + 16 * i) = bytes;
  }
}

// Scales that pad the swizzled layout are zeros.
WLIB_DEVICE void store_scale(const QuantizeParams& p, int64_t row, int64_t column, bool inside,
                             uint8_t scale) {
  if (!p.out.scales) return;
  const int64_t at = column / p.block(), count = p.columns() / p.block();
  if (!p.swizzle) {
    if (inside) p.out.scales[row * count + at] = scale;
  } else if (at < padded_scale_columns(count)) {
    p.out.scales[swizzled_scale(row, at, count)] = inside ? scale : uint8_t(0);
  }
}

WLIB_DEVICE void quantize_mx(const QuantizeParams& p, Place place, const float (&x)[kUnit]) {
  const bool inside = place.inside(p, place.column);
  if (!inside) return store_scale(p, place.row, place.column, false, 0);
  const int top = p.window ? int(p.row_largest[place.row]) : 0;
  const int floor = p.window && top > p.window - 1 ? top - (p.window - 1) : 0;
  const int own = int(mx_scale(x, p.rule)), scale = own > floor ? own : floor;
  const bool is_nan = scale == int(kE8M0NaN);
  const float multiplier = mx_multiplier(uint32_t(scale), p.rule);
  const int64_t at = place.row * p.columns() + place.column;
  uint32_t words[kUnit / 8];
  encode(p, x, multiplier, at, words);
  WLIB_UNROLL
  for (uint32_t& word : words) word = is_nan ? 0 : word;
  store_scale(p, place.row, place.column, true, uint8_t(scale));
  if (p.out.codes)
    *reinterpret_cast<uint4*>(p.out.codes + at / 2) = uint4{words[0], words[1], words[2], words[3]};
  if (p.out.mask)
    *reinterpret_cast<uint32_t*>(p.out.mask + at / 8) = is_nan ? 0 : mask_of(x, multiplier);
  if (p.out.carrier)
    store_carrier(p, at, scale - (top - carrier_range(p.carrier).largest), is_nan, words);
}

WLIB_DEVICE void quantize_nv(const QuantizeParams& p, Place place, uint32_t largest,
                             const float (&x)[kNvBlock]) {
  if (!place.inside(p, place.column)) return store_scale(p, place.row, place.column, false, 0);
  const float global_scale = *p.global_scale;
  const float to_global = global_scale > 0 ? 1 / global_scale : 0;
  uint8_t scale = nv_scale(x, largest, p.rule, nv_divisor(p.rounding), to_global);
  const bool is_nan = scale == 0x7f;
  const float multiplier = scale == 0 || is_nan ? 0 : to_global / e4m3_to_float(scale);
  const int64_t at = place.row * p.columns() + place.column;
  uint32_t words[kNvBlock / 8];
  encode(p, x, multiplier, at, words);
  WLIB_UNROLL
  for (uint32_t& word : words) word = is_nan ? 0 : word;
  if (p.rounding == Rounding::kMsEden) {
    float units[kNvBlock];
    uint8_t codes[kNvBlock];
    WLIB_UNROLL
    for (int i = 0; i < kNvBlock; ++i) {
      units[i] = x[i] * to_global;
      codes[i] = words[i / 8] >> i % 8 * 4 & 15;
    }
    scale = ms_eden_scale(units, codes, scale, scale_bits(p.key(), uint64_t(at) / kNvBlock));
  }
  store_scale(p, place.row, place.column, true, scale);
  if (p.out.codes) *reinterpret_cast<uint2*>(p.out.codes + at / 2) = uint2{words[0], words[1]};
  if (p.out.mask)
    *reinterpret_cast<uint16_t*>(p.out.mask + at / 8) =
        uint16_t(is_nan ? 0 : mask_of(x, multiplier));
}

// --- what a scale depends on ---

struct BlockPair {
  uint32_t first, second;
};
WLIB_DEVICE BlockPair largest_of_blocks(const float (&x)[kUnit]) {
  float first[kNvBlock], second[kNvBlock];
  take_block<0>(x, first);
  take_block<kNvBlock>(x, second);
  return {largest_bits(first), largest_bits(second)};
}

// Of the 16 x 16 values around each block of the thread: its warp has just these 16 lines.
WLIB_DEVICE BlockPair largest_of_squares(const QuantizeParams& p, TileSmem& s) {
  static_assert(kWarpLines == kNvBlock);
  BlockPair largest{0, 0};
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    float x[kUnit];
    take_unit(p, s, Unit(round), x);
    const BlockPair own = largest_of_blocks(x);
    largest = {larger(largest.first, own.first), larger(largest.second, own.second)};
  }
  return {largest_of_lanes(largest.first, 1, kLinesAtOnce),
          largest_of_lanes(largest.second, 1, kLinesAtOnce)};
}

WLIB_DEVICE void scan_mx(const QuantizeParams& p, TileSmem& s, Corner corner) {
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const Unit unit(round);
    const Place place(p, corner, unit);
    float x[kUnit];
    take_unit(p, s, unit, x);
    const uint32_t scale = mx_scale(x, p.rule);
    const uint32_t largest =
        largest_of_lanes(scale == kE8M0NaN ? 0 : scale, kLinesAtOnce, sm90::kWarpThreads);
    if (unit.block == 0 && place.row < p.rows())
      p.tile_largest[place.column / kTile * p.rows() + place.row] = largest;
  }
}

// Blocks with NaN or Inf do not count.
WLIB_DEVICE void scan_nv(const QuantizeParams& p, TileSmem& s) {
  const auto finite = [](uint32_t bits) { return bits < 0x7f800000u ? bits : 0; };
  uint32_t largest = 0;
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    float x[kUnit];
    take_unit(p, s, Unit(round), x);
    const BlockPair own = largest_of_blocks(x);
    largest = larger(largest, larger(finite(own.first), finite(own.second)));
  }
  largest = largest_of_lanes(largest, 1, sm90::kWarpThreads);
  sm90::block_sync();  // the side before may still be read
  if (sm90::lane_index() == 0) s.maxima[sm90::thread_index() / sm90::kWarpThreads] = largest;
  sm90::block_sync();
  if (sm90::thread_index() > 0) return;
  WLIB_UNROLL
  for (int i = 0; i < kTileWarps; ++i) largest = larger(largest, s.maxima[i]);
  p.tile_largest[sm90::block_index_x()] = largest;
}

// --- kernels ---

// Two threads per line and tile: 256 threads take 1024 units of a tile for each side.
template <bool kMx>
WLIB_DEVICE void quantize_side(const QuantizeParams& p, TileSmem& s, Corner corner) {
  [[maybe_unused]] BlockPair squares{0, 0};
  if (!kMx && p.square) squares = largest_of_squares(p, s);
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const Unit unit(round);
    Place place(p, corner, unit);
    float x[kUnit];
    take_unit(p, s, unit, x);
    if constexpr (kMx) {
      quantize_mx(p, place, x);
    } else {
      float block[kNvBlock];
      take_block<0>(x, block);
      quantize_nv(p, place, p.square ? squares.first : largest_bits(block), block);
      take_block<kNvBlock>(x, block);
      place.column += kNvBlock;
      quantize_nv(p, place, p.square ? squares.second : largest_bits(block), block);
    }
  }
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

template <bool kMx>
WLIB_KERNEL_RESIDENT(kTileThreads, 2)
quantize_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<TileSmem>();
  const Corner corner = start_tile(l.side[0], s);
  WLIB_NO_UNROLL
  for (int i = 0; i < l.sides; ++i) quantize_side<kMx>(l.side[i], s, corner);
}

template <bool kMx>
WLIB_KERNEL_RESIDENT(kTileThreads, 2)
scan_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<TileSmem>();
  const Corner corner = start_tile(l.side[0], s);
  WLIB_NO_UNROLL
  for (int i = 0; i < l.sides; ++i) {
    if constexpr (kMx)
      scan_mx(l.side[i], s, corner);
    else
      scan_nv(l.side[i], s);
  }
}

// Joins what the tiles have found: mxfp4 for 32 rows in a CTA, nvfp4 for all in one.
struct JoinSmem {
  uint32_t largest[kTileWarps][sm90::kWarpThreads];
};

template <bool kMx>
WLIB_KERNEL_RESIDENT(kTileThreads, 4)
join_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
  auto& s = sm90::dynamic_smem<JoinSmem>();
  const QuantizeParams& p = l.side[sm90::block_index_y()];
  const int warp = sm90::thread_index() / sm90::kWarpThreads, lane = sm90::lane_index();
  const int64_t row = int64_t(sm90::block_index_x()) * sm90::kWarpThreads + lane;
  uint32_t largest = 0;
  if constexpr (kMx) {
    const int64_t count = row < p.rows() ? quantize_tiles(p.columns()) : 0;
    for (int64_t i = warp; i < count; i += kTileWarps)
      largest = larger(largest, p.tile_largest[i * p.rows() + row]);
  } else {
    const int64_t count = quantize_tiles(p.rows()) * quantize_tiles(p.columns());
    for (int64_t i = sm90::thread_index(); i < count; i += kTileThreads)
      largest = larger(largest, p.tile_largest[i]);
  }
  s.largest[warp][lane] = largest;
  sm90::block_sync();
  if (warp > 0) return;
  WLIB_UNROLL
  for (int i = 1; i < kTileWarps; ++i) largest = larger(largest, s.largest[i][lane]);
  if constexpr (kMx) {
    if (row >= p.rows()) return;
    p.row_largest[row] = largest;
    if (p.out.row_scale)
      p.out.row_scale[row] = row_scale(int(largest) - carrier_range(p.carrier).largest);
  } else {
    largest = largest_of_lanes(largest, 1, sm90::kWarpThreads);
    if (lane == 0)
      *p.global_scale = std::bit_cast<float>(largest) /
                        (largest_nv_scale(p.rule, p.rounding) * nv_divisor(p.rounding));
  }
}

// Calls launch(kernel, grid x, grid y, bytes of shared memory) for one kernel after the other, of
// kTileThreads each, as long as it returns true.
template <bool kMx, class Launch>
bool for_passes(const QuantizeLaunch& l, Launch launch) {
  const QuantizeParams& p = l.side[0];
  const int64_t count = quantize_tiles(p.source.rows) * quantize_tiles(p.source.columns);
  const int64_t longest = l.sides == 1                       ? p.rows()
                          : p.source.rows > p.source.columns ? p.source.rows
                                                             : p.source.columns;
  const auto run = [&](auto kernel, int64_t x, int y, size_t bytes) {
    return x == 0 || launch(kernel, x, y, bytes);
  };
  if (p.wants_largest()) {
    const int64_t joins = kMx ? (longest + sm90::kWarpThreads - 1) / sm90::kWarpThreads : 1;
    if (!run(scan_kernel<kMx>, count, 1, sizeof(TileSmem)) ||
        !run(join_kernel<kMx>, joins, l.sides, sizeof(JoinSmem)))
      return false;
  }
  return run(quantize_kernel<kMx>, count, 1, sizeof(TileSmem));
}

}  // namespace wlib::fp4
