// FP4 quantisation of tiles of 128 x 128 values, along rows, columns or both: rotate, find the
// scales, round, pack.
//
// A scale may depend on more than its block. In nvfp4 it does on the largest magnitude of all: two
// kernels go before, one that finds it in every tile, one that joins what they found. With a window
// it depends on the largest scale of the row, which is also what a carrier's values are counted
// from: here blocks get their own scales, and what follows is in sm90_fold.h.
#pragma once

#include "fp4/sm90_encode.h"
#include "fp4/sm90_scan.h"
#include "wlib/layout/scales_128x4.h"

namespace wlib::fp4 {

// Eight codes in each word, the first in the lowest bits; `element` is the number of x[0] in the
// quantised matrix.
template <bool kPlain, int N>
WLIB_DEVICE void encode(const QuantizeParams& p, const float (&x)[N], float multiplier,
                        int64_t element, uint32_t (&words)[N / 8]) {
  static_assert(kRoundingBlock == 8);
  // One product gives the same for a power of two.
  constexpr bool kMx = N == kMxBlock;
  const float both = multiplier * kEncodeUnit;
  const auto encode_nearest = [&](auto clamp) {
    WLIB_UNROLL
    for (int w = 0; w < N / 8; ++w) {
      float scaled[8];
      WLIB_UNROLL
      for (int j = 0; j < 8; ++j)
        scaled[j] = kMx ? x[8 * w + j] * both : x[8 * w + j] * multiplier * kEncodeUnit;
      words[w] = encode_eight<clamp.value>(scaled);
    }
  };
  if (!kPlain && p.rounding == Rounding::kStochastic) {
    const RoundingKey key = p.key();
    WLIB_UNROLL
    for (int w = 0; w < N / 8; ++w) {
      const Draw d = rounding_draw(key, uint64_t(element) / 8 + w);
      words[w] = 0;
      WLIB_UNROLL
      for (int j = 0; j < 8; ++j)
        words[w] |= float_to_e2m1_stochastic(x[8 * w + j] * multiplier, code_bits(d, j)) << j * 4;
    }
  } else if (kPlain || (kMx && !may_clip(p.rule))) {
    encode_nearest(std::false_type{});
  } else {
    encode_nearest(std::true_type{});
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

// Where the scale of a block of kBlock values is. A row has whole blocks.
template <int kBlock, bool kPlain = false>
WLIB_DEVICE uint8_t& scale_of(const QuantizeParams& p, Place place) {
  if (kPlain || !p.swizzle) return p.out.scales[uint64_t(place.at) / kBlock];
  return p.out.scales[swizzled_scale(place.row, place.column / kBlock, p.columns() / kBlock)];
}

// Scales that pad the swizzled layout are zeros.
template <int kBlock>
WLIB_DEVICE void pad_scales(const QuantizeParams& p, Place place) {
  if (p.swizzle && place.column / kBlock < padded_scale_columns(p.columns() / kBlock))
    scale_of<kBlock>(p, place) = 0;
}

// With a scale of at least `floor`, which is stored and returned.
template <bool kPlain>
WLIB_DEVICE uint32_t quantize_mx(const QuantizeParams& p, Place place, Taken& taken, uint32_t floor,
                                 uint32_t (&words)[kUnit / 8]) {
  const ScaleRule rule = kPlain ? ScaleRule::kEven : p.rule;
  const bool is_simple = kPlain || (rule <= ScaleRule::kThreeQuarters &&
                                    p.rounding == Rounding::kNearest && !p.out.mask);
  float factor = taken.factor;
  if (!is_simple) taken.multiply(), factor = 1;
  const uint32_t largest = largest_magnitude(taken.x, factor);
  const uint32_t scale = larger(mx_scale(taken.x, largest, rule), floor);
  const bool is_nan = scale == kE8M0NaN;
  const float multiplier = mx_multiplier(scale, rule);
  // The product with the factor would be subnormal and lose bits, and the largest scale of all may
  // be too small.
  if (multiplier < 0x1p-100f) {
    if (factor != 1) taken.multiply(), factor = 1;
    taken.clamp(kE2M1Max / multiplier);
  }
  encode<kPlain>(p, taken.x, multiplier * factor, place.at, words);
  WLIB_UNROLL
  for (uint32_t& word : words) word = is_nan ? 0 : word;
  scale_of<kMxBlock, kPlain>(p, place) = uint8_t(scale);
  *reinterpret_cast<uint4*>(p.out.codes + uint64_t(place.at) / 2) =
      uint4{words[0], words[1], words[2], words[3]};
  if (!kPlain && p.out.mask)
    *reinterpret_cast<uint32_t*>(p.out.mask + uint64_t(place.at) / 8) =
        is_nan ? 0 : mask_of(taken.x, multiplier);
  return scale;
}

WLIB_DEVICE void quantize_nv(const QuantizeParams& p, Place place, uint32_t largest,
                             const float (&x)[kNvBlock]) {
  if (!place.inside()) return pad_scales<kNvBlock>(p, place);
  const float global_scale = *p.global_scale;
  const float to_global = global_scale > 0 ? 1 / global_scale : 0;
  uint8_t scale = nv_scale(x, largest, p.rule, nv_divisor(p.rounding), to_global);
  const bool is_nan = scale == 0x7f;
  const float multiplier = scale == 0 || is_nan ? 0 : to_global / e4m3_to_float(scale);
  uint32_t words[kNvBlock / 8];
  encode<false>(p, x, multiplier, place.at, words);
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
    scale = ms_eden_scale(units, codes, scale, scale_bits(p.key(), uint64_t(place.at) / kNvBlock));
  }
  scale_of<kNvBlock>(p, place) = scale;
  *reinterpret_cast<uint2*>(p.out.codes + uint64_t(place.at) / 2) = uint2{words[0], words[1]};
  if (p.out.mask)
    *reinterpret_cast<uint16_t*>(p.out.mask + uint64_t(place.at) / 8) =
        uint16_t(is_nan ? 0 : mask_of(x, multiplier));
}

// Of the 16 x 16 values around each block of the thread: its warp has just these 16 lines.
WLIB_DEVICE BlockPair largest_of_squares(const QuantizeParams& p, QuantizeSmem& s) {
  static_assert(kWarpLines == kNvBlock);
  BlockPair largest{0, 0};
  Taken taken;
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    take(p, s, round, taken);
    const BlockPair own = largest_of_blocks(taken);
    largest = {larger(largest.first, own.first), larger(largest.second, own.second)};
  }
  return {largest_of_lanes(largest.first, kUnits, sm90::kWarpThreads),
          largest_of_lanes(largest.second, kUnits, sm90::kWarpThreads)};
}

// Each thread takes two of the tile's 512 units.
template <bool kPlain>
WLIB_DEVICE void quantize_side_mx(const QuantizeParams& p, QuantizeSmem& s) {
  Place place = taken_place(p, s.corner);
  Taken units[kRounds];
  take<kPlain>(p, s, units);
  uint32_t* tile_largest =
      p.tile_largest + uint32_t(place.column) / kTile * uint32_t(p.rows()) + place.row;
  WLIB_UNROLL
  for (Taken& taken : units) {
    const bool inside = kPlain || place.inside();
    uint32_t words[kUnit / 8], scale = 0;
    if (inside)
      scale = quantize_mx<kPlain>(p, place, taken, 0, words);
    else
      pad_scales<kMxBlock>(p, place);
    if (p.window) {
      const uint32_t largest = largest_of_lanes(scale == kE8M0NaN ? 0 : scale, 1, kUnits);
      if (tile_lane() % kUnits == 0 && inside) *tile_largest = largest;
      tile_largest += kLinesAtOnce;
    }
    place.to_next_round(p);
  }
}

WLIB_DEVICE void quantize_side_nv(const QuantizeParams& p, QuantizeSmem& s) {
  const BlockPair squares = p.square ? largest_of_squares(p, s) : BlockPair{0, 0};
  Place place = taken_place(p, s.corner);
  Taken taken;
  WLIB_NO_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    take(p, s, round, taken);
    taken.multiply();
    WLIB_NO_UNROLL
    for (int i = 0; i < 2; ++i) {
      float block[kNvBlock];
      take_block<0>(taken.x, block);
      const uint32_t square = i == 0 ? squares.first : squares.second;
      quantize_nv(p, i == 0 ? place : place.second_block(p),
                  p.square ? square : largest_magnitude(block, 1), block);
      WLIB_UNROLL
      for (int j = 0; j < kNvBlock; ++j) taken.x[j] = taken.x[j + kNvBlock];
    }
    place.to_next_round(p);
  }
}

template <bool kMx, bool kPlain>
WLIB_KERNEL_RESIDENT(kTileThreads, kTileCtas)
quantize_kernel(WLIB_GRID_CONSTANT QuantizeLaunch l) {
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  start();
  fill<kPlain>(l.side[0], own_corner(l), s);
  WLIB_NO_UNROLL
  for (int i = 0; i < l.sides; ++i) {
    if constexpr (kMx)
      quantize_side_mx<kPlain>(l.side[i], s);
    else
      quantize_side_nv(l.side[i], s);
  }
}

}  // namespace wlib::fp4
