// FP8 conversions by the GPU's own instructions; the host takes their definition, numerics/e4m3.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wlib/numerics/e4m3.h"
#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

// The values of two neighbouring codes, the lower byte's first. Exact.
WLIB_DEVICE float2 e4m3x2_to_float2(uint16_t codes) {
#if WLIB_ON_DEVICE
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  return __half22float2(reinterpret_cast<const __half2&>(halves));
#else
  return {e4m3_to_float(uint8_t(codes)), e4m3_to_float(uint8_t(codes >> 8))};
#endif
}

// The codes of two floats, the first in the lower byte: to nearest even, saturated; every NaN as
// 0x7f.
WLIB_DEVICE uint16_t float2_to_e4m3x2(float2 v) {
#if WLIB_ON_DEVICE
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(v.y), "f"(v.x));
  return codes;
#else
  const auto code = [](float f) { return f == f ? float_to_e4m3(f) : uint8_t(0x7f); };
  return uint16_t(code(v.x) | code(v.y) << 8);
#endif
}
WLIB_DEVICE uint32_t float_to_e4m3x4(float a, float b, float c, float d) {
  return float2_to_e4m3x2({a, b}) | uint32_t(float2_to_e4m3x2({c, d})) << 16;
}

// The same for E5M2, but only of numbers that it holds; of others the sign is right. The host takes
// the upper half of FP16.
WLIB_DEVICE uint16_t float2_to_e5m2x2(float2 v) {
#if WLIB_ON_DEVICE
  uint16_t codes;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(v.y), "f"(v.x));
  return codes;
#else
  const auto code = [](float f) { return __half_raw(__float2half_rn(f)).x >> 8; };
  return uint16_t(code(v.x) | code(v.y) << 8);
#endif
}
WLIB_DEVICE uint32_t float_to_e5m2x4(float a, float b, float c, float d) {
  return float2_to_e5m2x2({a, b}) | uint32_t(float2_to_e5m2x2({c, d})) << 16;
}

// Two BF16, rounded to nearest even, the first in the lower half; and their values.
WLIB_DEVICE uint32_t pack_bf16x2(float low, float high) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  const auto bits = [](float f) { return __builtin_bit_cast(uint16_t, __float2bfloat16_rn(f)); };
  return bits(low) | uint32_t(bits(high)) << 16;
#endif
}
WLIB_DEVICE float bf16x2_low(uint32_t pair) { return __builtin_bit_cast(float, pair << 16); }
WLIB_DEVICE float bf16x2_high(uint32_t pair) {
  return __builtin_bit_cast(float, pair & 0xffff0000u);
}

// Of pairs of BF16: products, and a * b + c. Exact ones only, which the host does not round.
WLIB_DEVICE uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  const auto product = [&](uint32_t x, uint32_t y) {
    return __builtin_bit_cast(uint32_t,
                              __builtin_bit_cast(float, x) * __builtin_bit_cast(float, y));
  };
  const uint32_t high = product(a & 0xffff0000u, b & 0xffff0000u), low = product(a << 16, b << 16);
  return (high & 0xffff0000u) | low >> 16;
#endif
}
WLIB_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  const auto value = [](uint32_t bits) { return __builtin_bit_cast(float, bits); };
  const auto sum = [&](int shift) {
    const auto upper = [&](uint32_t bits) { return value(bits >> shift << 16); };
    return __builtin_bit_cast(uint32_t, upper(a) * upper(b) + upper(c)) >> 16;
  };
  return sum(0) | sum(16) << 16;
#endif
}

}  // namespace wlib::sm90
