// Per-token FP8 quantisation: scale = absmax / 448, codes = E4M3(x / scale). One CTA per token, two
// passes over the row, of which the second one hits the caches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "wlib/numerics/e4m3.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/sync.h"

namespace wlib::int4fp8 {

constexpr int kQuantizeThreads = 256;
constexpr int kQuantizeRun = 8;  // neighbouring values per thread

WLIB_DEVICE float as_float(float x) { return x; }
WLIB_DEVICE float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
WLIB_DEVICE float as_float(__half x) { return __half2float(x); }

// Calls f(first, values, count) for the thread's runs of a row; whole runs are loaded 16 bytes at a
// time where aligned.
template <class T, class F>
WLIB_DEVICE void for_runs(const T* row, int64_t k, F f) {
  struct alignas(16) Run {
    T value[kQuantizeRun];
  };
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
  for (int64_t first = sm90::thread_index() * kQuantizeRun; first < k;
       first += kQuantizeThreads * kQuantizeRun) {
    const int count = k - first < kQuantizeRun ? int(k - first) : kQuantizeRun;
    float values[kQuantizeRun];
    if (aligned && count == kQuantizeRun) {
      const Run run = *reinterpret_cast<const Run*>(row + first);
      WLIB_UNROLL
      for (int i = 0; i < kQuantizeRun; ++i) values[i] = as_float(run.value[i]);
    } else {
      WLIB_UNROLL
      for (int i = 0; i < kQuantizeRun; ++i)
        values[i] = i < count ? as_float(row[first + i]) : 0.0f;
    }
    f(first, values, count);
  }
}

// Of non-negative values; NaN beats every number: its bits, as an integer, are larger.
WLIB_DEVICE float largest(float a, float b) {
  return __builtin_bit_cast(uint32_t, a) > __builtin_bit_cast(uint32_t, b) ? a : b;
}

struct QuantizeSmem {
  float warp_max[kQuantizeThreads / sm90::kWarpThreads];
};

// The largest magnitude of the row, in every thread.
template <class T>
WLIB_DEVICE float row_maximum(QuantizeSmem& s, const T* row, int64_t k) {
  float magnitude = 0;
  for_runs(row, k, [&](int64_t, const float(&values)[kQuantizeRun], int) {
    WLIB_UNROLL
    for (int i = 0; i < kQuantizeRun; ++i) magnitude = largest(magnitude, fabsf(values[i]));
  });
  WLIB_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2)
    magnitude = largest(magnitude, sm90::warp_shuffle_xor(magnitude, lanes));
  if (sm90::lane_index() == 0) s.warp_max[sm90::thread_index() / sm90::kWarpThreads] = magnitude;
  sm90::block_sync();
  WLIB_UNROLL
  for (float other : s.warp_max) magnitude = largest(magnitude, other);
  return magnitude;
}

template <class T>
WLIB_KERNEL(kQuantizeThreads)
quantize_kernel(WLIB_GRID_CONSTANT QuantizeParams p) {
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  const int64_t row = sm90::block_index_x();
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const float scale = row_maximum(s, x, p.k) / kE4M3Max;
  if (sm90::thread_index() == 0) p.scale[row] = scale;
  uint8_t* codes = p.codes + row * p.k;
  const bool aligned = p.k % kQuantizeRun == 0;
  for_runs(x, p.k, [&](int64_t first, const float(&values)[kQuantizeRun], int count) {
    uint32_t packed[2] = {0, 0};
    WLIB_UNROLL
    for (int i = 0; i < kQuantizeRun; ++i) {
      const uint32_t code = scale == 0 ? 0 : float_to_e4m3(values[i] / scale);
      packed[i / 4] |= code << i % 4 * 8;
    }
    if (aligned) {
      *reinterpret_cast<uint2*>(codes + first) = uint2{packed[0], packed[1]};
    } else {
      WLIB_UNROLL
      for (int i = 0; i < kQuantizeRun; ++i) {
        if (i < count) codes[first + i] = uint8_t(packed[i / 4] >> i % 4 * 8);
      }
    }
  });
}

}  // namespace wlib::int4fp8
