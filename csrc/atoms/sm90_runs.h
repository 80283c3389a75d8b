// Elements of a type known at run time, one by one and eight neighbouring ones at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wlib/params/int4fp8.h"
#include "wlib/sm90/platform.h"

namespace wlib::atoms {

constexpr int kRun = 8;  // neighbouring elements

WLIB_DEVICE float to_float(FloatType type, uint32_t bits) {
  if (type == FloatType::kFloat32) return __builtin_bit_cast(float, bits);
  if (type == FloatType::kBFloat16) return __builtin_bit_cast(float, bits << 16);
  return __half2float(__builtin_bit_cast(__half, uint16_t(bits)));
}
WLIB_DEVICE uint32_t load_bits(const void* data, FloatType type, int64_t at) {
  return type == FloatType::kFloat32 ? static_cast<const uint32_t*>(data)[at]
                                     : static_cast<const uint16_t*>(data)[at];
}
WLIB_DEVICE float load_float(const void* data, FloatType type, int64_t at) {
  return to_float(type, load_bits(data, type, at));
}
WLIB_DEVICE uint32_t from_float(FloatType type, float value) {
  if (type == FloatType::kFloat32) return __builtin_bit_cast(uint32_t, value);
  if (type == FloatType::kBFloat16) return __builtin_bit_cast(uint16_t, __float2bfloat16_rn(value));
  return __builtin_bit_cast(uint16_t, __float2half_rn(value));
}

// Eight neighbouring elements as their bits, two 16-bit ones in a word.
struct Run {
  uint32_t word[kRun];
};
struct alignas(16) Quad {
  uint32_t word[4];
};

// Whether whole runs of `data` may be moved 16 bytes at a time.
WLIB_DEVICE bool whole_runs(const void* data, int columns) {
  return columns % kRun == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

WLIB_DEVICE void load_run(const void* data, FloatType type, int64_t at, int count, bool whole,
                          Run& run) {
  const bool wide = type == FloatType::kFloat32;
  if (whole) {
    const auto* from =
        reinterpret_cast<const Quad*>(static_cast<const char*>(data) + at * (wide ? 4 : 2));
    const Quad low = from[0];
    Quad high{};
    if (wide) high = from[1];
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) {
      run.word[i] = low.word[i];
      run.word[4 + i] = high.word[i];
    }
    return;
  }
  WLIB_UNROLL
  for (int i = 0; i < kRun; ++i) run.word[i] = 0;
  WLIB_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const uint32_t bits = i < count ? load_bits(data, type, at + i) : 0;
    if (wide)
      run.word[i] = bits;
    else
      run.word[i / 2] |= bits << i % 2 * 16;
  }
}
WLIB_DEVICE float run_value(const Run& run, FloatType type, int i) {
  if (type == FloatType::kFloat32) return __builtin_bit_cast(float, run.word[i]);
  return to_float(type, run.word[i / 2] >> i % 2 * 16 & 0xffff);
}
WLIB_DEVICE void store_run(void* data, FloatType type, int64_t at, int count, bool whole,
                           const uint32_t (&bits)[kRun]) {
  if (whole && type == FloatType::kFloat32) {
    auto* to = reinterpret_cast<Quad*>(static_cast<uint32_t*>(data) + at);
    to[0] = {{bits[0], bits[1], bits[2], bits[3]}};
    to[1] = {{bits[4], bits[5], bits[6], bits[7]}};
  } else if (whole) {
    *reinterpret_cast<Quad*>(static_cast<uint16_t*>(data) +
                             at) = {{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16,
                                     bits[4] | bits[5] << 16, bits[6] | bits[7] << 16}};
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) {
      if (i >= count) break;
      if (type == FloatType::kFloat32)
        static_cast<uint32_t*>(data)[at + i] = bits[i];
      else
        static_cast<uint16_t*>(data)[at + i] = uint16_t(bits[i]);
    }
  }
}

}  // namespace wlib::atoms
