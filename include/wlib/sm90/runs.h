// Runs of eight neighbouring elements of any of the float types, moved 16 bytes at a time where
// they are whole and aligned.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wlib/params/float_type.h"
#include "wlib/sm90/platform.h"

namespace wlib::sm90 {

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

constexpr int kRun = 8;

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

// As above, of an array of any alignment.
WLIB_DEVICE bool whole_run(const void* data, FloatType type, int64_t at, int64_t count) {
  const int64_t bytes = type == FloatType::kFloat32 ? 4 : 2;
  return count >= kRun && (reinterpret_cast<uintptr_t>(data) + at * bytes) % 16 == 0;
}
// Values from `at` on, zero from `count` on.
WLIB_DEVICE void load_values(const void* data, FloatType type, int64_t at, int64_t count,
                             float (&values)[kRun]) {
  Run run;
  load_run(data, type, at, int(count < kRun ? count : kRun), whole_run(data, type, at, count), run);
  if (type == FloatType::kFloat32) {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) values[i] = run_value(run, FloatType::kFloat32, i);
  } else if (type == FloatType::kBFloat16) {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) values[i] = run_value(run, FloatType::kBFloat16, i);
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) values[i] = run_value(run, FloatType::kFloat16, i);
  }
}
// Whole, aligned runs at `kCount` addresses: all loads are on their way before the first is used.
template <int kCount>
WLIB_DEVICE void load_whole_runs(const void* const (&from)[kCount], FloatType type,
                                 float (&values)[kCount][kRun]) {
  Quad low[kCount];
  WLIB_UNROLL
  for (int i = 0; i < kCount; ++i) low[i] = *static_cast<const Quad*>(from[i]);
  if (type == FloatType::kFloat32) {
    Quad high[kCount];
    WLIB_UNROLL
    for (int i = 0; i < kCount; ++i) high[i] = static_cast<const Quad*>(from[i])[1];
    WLIB_UNROLL
    for (int i = 0; i < kCount * 4; ++i) {
      values[i / 4][i % 4] = __builtin_bit_cast(float, low[i / 4].word[i % 4]);
      values[i / 4][4 + i % 4] = __builtin_bit_cast(float, high[i / 4].word[i % 4]);
    }
    return;
  }
  WLIB_UNROLL
  for (int i = 0; i < kCount * kRun; ++i) {
    const uint32_t bits = low[i / kRun].word[i % kRun / 2] >> i % 2 * 16 & 0xffff;
    values[i / kRun][i % kRun] = to_float(type, bits);
  }
}
// Runs of one type at any addresses, zero from their counts on.
template <int kCount>
WLIB_DEVICE void load_runs(const void* const (&from)[kCount], FloatType type,
                           const int64_t (&counts)[kCount], float (&values)[kCount][kRun]) {
  bool whole = true;
  WLIB_UNROLL
  for (int i = 0; i < kCount; ++i) whole = whole && whole_run(from[i], type, 0, counts[i]);
  if (whole) return load_whole_runs(from, type, values);
  WLIB_UNROLL
  for (int i = 0; i < kCount; ++i) load_values(from[i], type, 0, counts[i], values[i]);
}
// Rounds once; stores the first `count`.
WLIB_DEVICE void store_values(void* data, FloatType type, int64_t at, int64_t count,
                              const float (&values)[kRun]) {
  uint32_t bits[kRun];
  if (type == FloatType::kFloat32) {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = from_float(FloatType::kFloat32, values[i]);
  } else if (type == FloatType::kBFloat16) {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = from_float(FloatType::kBFloat16, values[i]);
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = from_float(FloatType::kFloat16, values[i]);
  }
  store_run(data, type, at, int(count < kRun ? count : kRun), whole_run(data, type, at, count),
            bits);
}

WLIB_DEVICE void store_float(void* data, FloatType type, int64_t at, float value) {
  if (type == FloatType::kFloat32)
    static_cast<float*>(data)[at] = value;
  else
    static_cast<uint16_t*>(data)[at] = uint16_t(from_float(type, value));
}
struct alignas(8) Pair {
  uint32_t word[2];
};
// Four neighbouring elements, zero from `count` on.
WLIB_DEVICE void load_quad(const void* data, FloatType type, int64_t at, int64_t count,
                           float (&values)[4]) {
  const int64_t bytes = type == FloatType::kFloat32 ? 16 : 8;
  const auto* from = static_cast<const char*>(data) + at * bytes / 4;
  if (count < 4 || reinterpret_cast<uintptr_t>(from) % bytes) {
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = i < count ? load_float(data, type, at + i) : 0.0f;
  } else if (type == FloatType::kFloat32) {
    const Quad bits = *reinterpret_cast<const Quad*>(from);
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = __builtin_bit_cast(float, bits.word[i]);
  } else {
    const Pair bits = *reinterpret_cast<const Pair*>(from);
    WLIB_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = to_float(type, bits.word[i / 2] >> i % 2 * 16 & 0xffff);
  }
}
// The first `count` of four neighbouring elements, rounded once.
WLIB_DEVICE void store_quad(void* data, FloatType type, int64_t at, int64_t count,
                            const float (&values)[4]) {
  const int64_t bytes = type == FloatType::kFloat32 ? 16 : 8;
  auto* to = static_cast<char*>(data) + at * bytes / 4;
  uint32_t bits[4];
  WLIB_UNROLL
  for (int i = 0; i < 4; ++i) bits[i] = from_float(type, values[i]);
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % bytes == 0) {
    if (type == FloatType::kFloat32)
      *reinterpret_cast<Quad*>(to) = {{bits[0], bits[1], bits[2], bits[3]}};
    else
      *reinterpret_cast<Pair*>(to) = {{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16}};
    return;
  }
  WLIB_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < count) store_float(data, type, at + i, values[i]);
  }
}

}  // namespace wlib::sm90
