// Block scales of FP4: which scale a block of values gets. One function per format, used by CPU and
// GPU alike; every sum has a fixed order, so that both give the same bits.
#pragma once

#include <bit>

#include "wlib/numerics/e2m1.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/e8m0.h"

namespace wlib::fp4 {

constexpr int kMxBlock = 32;  // E8M0 per 32 values
constexpr int kNvBlock = 16;  // E4M3 per 16 values, and FP32 per tensor

// What a rule makes of the largest magnitude a of a block, and of its standard deviation:
enum class ScaleRule : int {
  // mxfp4; scale = 2^e
  kEven,           // e = floor(log2(a rounded to one fraction bit)) - 2
  kFloor,          // e = floor(log2 a) - 2
  kThreeQuarters,  // the same e, codes of 3/4 of the value: nothing clips
  kQuest,          // e = round(log2(0.487 * sigma))
  kQuestFloor,     // e = floor(log2(0.487 * sigma))
  // nvfp4; scale = E4M3(a / 6 / global)
  kAmax,
  kFourOverSix,  // or a / 4 / global, if its codes come closer
};
WLIB_HOST_DEVICE constexpr bool is_mx(ScaleRule rule) { return rule < ScaleRule::kAmax; }
// Whether a value may reach the middle between 6 and the 8 that would follow: kEven stays below
// 7 / 8 of a power of two, kThreeQuarters below 3 / 4.
WLIB_HOST_DEVICE constexpr bool may_clip(ScaleRule rule) {
  return rule != ScaleRule::kEven && rule != ScaleRule::kThreeQuarters;
}

// The E2M1 grid fits N(0, sigma) best with this scale (in units of sigma); squared.
constexpr float kQuestFactorSquared = (2.92247856f / 6) * (2.92247856f / 6);
// E4M3 scales reach 448; the second candidate of four_over_six is 1.5 times the first.
WLIB_HOST_DEVICE constexpr float largest_nv_scale(ScaleRule rule) {
  return rule == ScaleRule::kFourOverSix ? 256.0f : kE4M3Max;
}

// In the order of halves: x[i] + x[i + N/2], and so on. Destroys x.
template <int kHalf, int N>
WLIB_HOST_DEVICE float sum_halves_from(float (&x)[N]) {
  WLIB_UNROLL
  for (int i = 0; i < kHalf; ++i) x[i] += x[i + kHalf];
  if constexpr (kHalf > 1) sum_halves_from<kHalf / 2>(x);
  return x[0];
}
template <int N>
WLIB_HOST_DEVICE float sum_halves(float (&x)[N]) {
  return sum_halves_from<N / 2>(x);
}

// Bits of the largest magnitude. Magnitudes compare like their bits, Inf and NaN above all others.
template <int N>
WLIB_HOST_DEVICE uint32_t largest_bits(const float (&x)[N]) {
  uint32_t largest = 0;
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

WLIB_HOST_DEVICE constexpr int clamp_e8m0(int code) {
  return code < 0 ? 0 : code > kE8M0Largest ? kE8M0Largest : code;
}

// floor or round of log2(0.487 sigma), biased; sigma of x / 2^e with 2^e near the largest
// magnitude, so that squares neither overflow nor vanish.
template <int N>
WLIB_HOST_DEVICE int quest_e8m0(const float (&x)[N], uint32_t largest, bool nearest) {
  const int exponent = largest >> 23 < 253 ? int(largest >> 23) : 253;
  const float unit = e8m0_reciprocal(uint32_t(exponent));
  float y[N];
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) y[i] = x[i] * unit;
  const float mean = sum_halves(y) * (1.0f / N);
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) {
    const float deviation = x[i] * unit - mean;
    y[i] = deviation * deviation;
  }
  const float square = sum_halves(y) * (1.0f / N) * kQuestFactorSquared;
  // log2 of the root is half of log2 of the square, rounded down either way.
  const int log2_square = int(std::bit_cast<uint32_t>(square) >> 23) - 127;
  return exponent + ((log2_square + int(nearest)) >> 1);
}

// E8M0 scale of a block whose largest magnitude has these bits. A NaN or Inf in it makes the scale
// NaN; zeros get the smallest scale.
WLIB_HOST_DEVICE uint32_t mx_scale(const float (&x)[kMxBlock], uint32_t largest, ScaleRule rule) {
  if (largest >= 0x7f800000u) return kE8M0NaN;
  if (largest == 0) return 0;
  int code;
  if (rule == ScaleRule::kQuest || rule == ScaleRule::kQuestFloor)
    code = quest_e8m0(x, largest, rule == ScaleRule::kQuest);
  else
    code = int((largest + (rule == ScaleRule::kEven ? 0x200000u : 0u)) >> 23) - 2;
  return uint32_t(clamp_e8m0(code));
}

WLIB_HOST_DEVICE uint32_t mx_scale(const float (&x)[kMxBlock], ScaleRule rule) {
  return mx_scale(x, largest_bits(x), rule);
}

// What a value is multiplied with before it is rounded to a code.
WLIB_HOST_DEVICE constexpr float mx_multiplier(uint32_t scale, ScaleRule rule) {
  if (scale == kE8M0NaN) return 0;
  return e8m0_reciprocal(scale) * (rule == ScaleRule::kThreeQuarters ? 0.75f : 1.0f);
}

// Squared error of the codes that scale (a value of E4M3) leads to, in units of the global scale.
WLIB_HOST_DEVICE float nv_error(const float (&x)[kNvBlock], float to_global, float scale) {
  float error[kNvBlock];
  WLIB_UNROLL
  for (int i = 0; i < kNvBlock; ++i) {
    const float value = x[i] * to_global;
    const float code = scale > 0 ? e2m1_to_float(float_to_e2m1(value / scale)) : 0.0f;
    const float difference = value - code * scale;
    error[i] = difference * difference;
  }
  return sum_halves(error);
}

// E4M3 scale of a block whose largest magnitude has these bits, here or in the 16 x 16 values that
// share the scale; to_global is 1 / global scale, 0 if that is 0.
WLIB_HOST_DEVICE uint8_t nv_scale(const float (&x)[kNvBlock], uint32_t bits, ScaleRule rule,
                                  float divisor, float to_global) {
  if (bits >= 0x7f800000u) return 0x7f;
  const float largest = std::bit_cast<float>(bits) * to_global;
  const uint8_t six = float_to_e4m3(largest / divisor);
  if (rule != ScaleRule::kFourOverSix) return six;
  const uint8_t four = float_to_e4m3(largest / 4.0f);
  return nv_error(x, to_global, e4m3_to_float(four)) < nv_error(x, to_global, e4m3_to_float(six))
             ? four
             : six;
}

}  // namespace wlib::fp4
