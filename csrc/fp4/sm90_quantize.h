// FP4 quantisation of tiles of 128 x 128 values, along rows, columns or both: rotate, find the
// scales, round, pack. Bits are the CPU's.
//
// A scale may depend on more than its block: with a window, on the largest scale of the row; in
// nvfp4 on the largest magnitude of all. Then two kernels go before: one that finds these of every
// tile, one that joins them.
#pragma once

#include "fp4/sm90_scan.h"
#include "wlib/layout/scales_128x4.h"
#include "wlib/sm90/e2m1.h"

namespace wlib::fp4 {

// Eight codes in each word, the first in the lowest bits; `element` is the number of x[0] in the
// quantised matrix.
template <int N>
WLIB_DEVICE void encode(const QuantizeParams& p, const float (&x)[N], float multiplier,
                        int64_t element, uint32_t (&words)[N / 8]) {
  static_assert(kRoundingBlock == 8);
  if (p.rounding != Rounding::kStochastic) {
    WLIB_UNROLL
    for (int w = 0; w < N / 8; ++w) {
      float scaled[8];
      WLIB_UNROLL
      for (int j = 0; j < 8; ++j) scaled[j] = x[8 * w + j] * multiplier;
      words[w] = sm90::eight_e2m1(scaled);
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

// The carrier's bytes of four codes in the lower half of a word.
WLIB_DEVICE uint32_t carrier_bytes(CarrierTable table, uint32_t codes) {
  return sm90::permute_bytes(table.low, table.high, codes & 0x7777u) | sign_bytes(codes);
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
  const bool inside = place.inside(p);
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
  if (!place.inside(p)) return store_scale(p, place.row, place.column, false, 0);
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

// Each thread takes two of the tile's 512 units.
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

template <bool kMx>
WLIB_KERNEL_RESIDENT(kTileThreads, 2)
quantize_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<TileSmem>();
  const Corner corner = start_tile(l.side[0], s);
  WLIB_NO_UNROLL
  for (int i = 0; i < l.sides; ++i) quantize_side<kMx>(l.side[i], s, corner);
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
