// Arithmetic on two FP16 numbers in one register, the first one in the lower half. Every operation
// rounds once, to nearest even; subnormal numbers are kept.
#pragma once

#include <cuda_fp16.h>

#include <cmath>

#include "wlib/sm90/convert.h"
#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

#if !WLIB_ON_DEVICE
namespace detail {
inline double half_value(uint32_t bits) {
  return double(__half2float(__half(__half_raw{uint16_t(bits)})));
}
inline uint32_t half_bits(double x) { return __half_raw(__double2half(x)).x; }
// Doubles hold sums and products of FP16 numbers exactly, or with so many bits to spare that
// rounding twice makes no difference.
template <class F>
uint32_t each_half(F&& f) {
  return half_bits(f(0)) | half_bits(f(16)) << 16;
}
}  // namespace detail
#endif

// The host takes the same instruction for each half.
#if WLIB_ON_DEVICE
#define WLIB_HALF2_BINARY(name, instruction, expression)          \
  WLIB_DEVICE uint32_t name(uint32_t a, uint32_t b) {             \
    uint32_t out;                                                 \
    asm(instruction " %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b)); \
    return out;                                                   \
  }
#else
#define WLIB_HALF2_BINARY(name, instruction, expression)                                   \
  inline uint32_t name(uint32_t a, uint32_t b) {                                           \
    return detail::each_half([=](int shift) {                                              \
      const double x = detail::half_value(a >> shift), y = detail::half_value(b >> shift); \
      return expression;                                                                   \
    });                                                                                    \
  }
#endif
WLIB_HALF2_BINARY(half2_add, "add.rn.f16x2", x + y)
WLIB_HALF2_BINARY(half2_sub, "sub.rn.f16x2", x - y)
WLIB_HALF2_BINARY(half2_mul, "mul.rn.f16x2", x* y)
// NaN loses against a number.
WLIB_HALF2_BINARY(half2_max, "max.f16x2", std::fmax(x, y))
#undef WLIB_HALF2_BINARY

// a * b + c
WLIB_DEVICE uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  return detail::each_half([=](int shift) {
    return detail::half_value(a >> shift) * detail::half_value(b >> shift) +
           detail::half_value(c >> shift);
  });
#endif
}

// 2^x, on the GPU within 2^-9.9 of it.
WLIB_DEVICE uint32_t half2_exp2(uint32_t x) {
#if WLIB_ON_DEVICE
  uint32_t out;
  asm("ex2.approx.f16x2 %0, %1;" : "=r"(out) : "r"(x));
  return out;
#else
  return detail::each_half([=](int shift) { return std::exp2(detail::half_value(x >> shift)); });
#endif
}

WLIB_DEVICE uint32_t pack_half2(float low, float high) {
  return uint32_t(__half_raw(__float2half_rn(low)).x) |
         uint32_t(__half_raw(__float2half_rn(high)).x) << 16;
}
WLIB_DEVICE float2 unpack_half2(uint32_t halves) {
  return {__half2float(__half(__half_raw{uint16_t(halves)})),
          __half2float(__half(__half_raw{uint16_t(halves >> 16)}))};
}

// As float2_to_e4m3x2.
WLIB_DEVICE uint16_t half2_to_e4m3x2(uint32_t halves) {
#if WLIB_ON_DEVICE
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(codes) : "r"(halves));
  return codes;
#else
  return float2_to_e4m3x2(unpack_half2(halves));
#endif
}

}  // namespace wlib::sm90
