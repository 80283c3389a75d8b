// Random roundings of FP4. A number is a function of what it is for: of (seed, step), of the
// stream, which keeps the roundings of one step apart, and of the place in the quantised matrix. So
// every device and any order of evaluation give the same bits.
#pragma once

#include "wlib/numerics/e2m1.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/fp4_scale.h"
#include "wlib/numerics/philox.h"

namespace wlib::fp4 {

enum class Rounding : int {
  kNearest,     // ties to even
  kStochastic,  // of codes
  kMsEden,      // codes to nearest; the scales, corrected by what that lost, stochastically
};

struct RoundingKey {
  uint64_t seed;
  uint32_t step, stream;
};

// Streams of a call with this offset: the rows and the columns of one tensor never share one.
WLIB_HOST_DEVICE constexpr uint32_t rounding_stream(uint32_t offset, bool transposed) {
  return offset * 2 + uint32_t(transposed);
}
constexpr int64_t kLargestOffset = (int64_t(1) << 30) - 1;
constexpr uint32_t kSignStream = 0x80000000u;  // plus the offset: signs of rotations

WLIB_HOST_DEVICE constexpr Draw rounding_draw(const RoundingKey& key, uint64_t block) {
  return draw(key.seed, key.step, key.stream, block);
}

// Codes: a draw is for kRoundingBlock neighbouring elements in row-major order, 16 bits each. They
// are the upper ones of 22; the next one is set, so that the steps of 2^-16 lie around the true
// probability.
WLIB_HOST_DEVICE constexpr uint32_t code_bits(const Draw& d, int element_in_block) {
  return (rounding_bits(d, element_in_block) & 0xffffu) << 6 | 0x20u;
}

// Scales: a draw is for four neighbouring blocks in row-major order, 20 bits each.
WLIB_HOST_DEVICE constexpr uint32_t scale_bits(const RoundingKey& key, uint64_t block) {
  const Draw d = rounding_draw(key, block / 4);  // selected: an index would put it into memory
  const uint32_t first = block & 1 ? d.word[1] : d.word[0],
                 last = block & 1 ? d.word[3] : d.word[2];
  return (block & 2 ? last : first) >> 12;
}

// Rounds a value >= 0 up with the probability of the distance to the value below; `random` holds 20
// random bits. Saturates at 448.
WLIB_HOST_DEVICE constexpr uint8_t float_to_e4m3_stochastic(float value, uint32_t random) {
  constexpr uint32_t kLargest = 0x43e00000u, kLeastNormal = 0x3c800000u;  // 448, 2^-6
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t clamped = bits < kLargest ? bits : kLargest;
  const uint32_t normal = ((clamped + random) >> 20) - (120u << 3);
  // In units of 2^-29: below 2^-6 that is less than 2^23, and what lies below is cut off.
  const float fixed = std::bit_cast<float>(clamped < kLeastNormal ? clamped : 0u) * 0x1p29f;
  const uint32_t subnormal = (uint32_t(fixed) + random) >> 20;
  const uint32_t code = clamped < kLeastNormal ? subnormal : normal;
  return uint8_t(code < 0x7e ? code : 0x7e);
}

// What the largest magnitude of a block is divided by to make the scale of nvfp4.
//
// Nearest: 6, the largest code; rounding the scale down may clip. Stochastic: so much less that it
// cannot clip, because E4M3 rounds by at most 1/17 down. MS-EDEN: the divisor of Quartet II, which
// clips a little for smaller steps.
WLIB_HOST_DEVICE constexpr float nv_divisor(Rounding rounding) {
  return rounding == Rounding::kNearest      ? kE2M1Max
         : rounding == Rounding::kStochastic ? kE2M1Max * 16 / 17
                                             : kE2M1Max * 16 / 17 / 0.93f;
}

// MS-EDEN's correction lets scales grow beyond what rounding to nearest gave them.
WLIB_HOST_DEVICE constexpr float largest_nv_scale(ScaleRule rule, Rounding rounding) {
  return rounding == Rounding::kMsEden ? 256.0f : largest_nv_scale(rule);
}

// The scale of a block whose codes, made with `scale`, are known: scale * <x, x> / <x, code *
// scale> makes the block right along its own direction, and stochastic rounding keeps that in the
// mean. x in units of the global scale.
WLIB_HOST_DEVICE uint8_t ms_eden_scale(const float (&x)[kNvBlock], const uint8_t (&codes)[kNvBlock],
                                       uint8_t scale, uint32_t random) {
  const float value = e4m3_to_float(scale);
  float squares[kNvBlock], products[kNvBlock];
  WLIB_UNROLL
  for (int i = 0; i < kNvBlock; ++i) {
    squares[i] = x[i] * x[i];
    products[i] = x[i] * (e2m1_to_float(codes[i]) * value);
  }
  const float own = sum_halves(squares), common = sum_halves(products);
  return common > 0 ? float_to_e4m3_stochastic(value * (own / common), random) : scale;
}

}  // namespace wlib::fp4
