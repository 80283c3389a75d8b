// The inner loops of the quantiser, compiled once per instruction set like cpu_kernels.cpp, whose
// table lists them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "int4fp8/cpu_kernels.h"
#include "wlib/numerics/silu.h"
#include "wlib/params/int4fp8.h"

namespace wlib::int4fp8::WLIB_ISA {
namespace {

// Adds up a power of two of values by halving: the upper half onto the lower one, until one is
// left.
float fold(float* values, int count) {
  for (int half = count / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

}  // namespace

// Magnitudes compare like their bits, and NaN beats every number: a row with a NaN has a NaN scale.
float quantize_row(const float* x, int64_t k, uint8_t* codes) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = std::bit_cast<float>(largest) / kE4M3Max;
  if (scale == 0) {
    std::memset(codes, 0, k);
  } else {
    for (int64_t i = 0; i < k; ++i) codes[i] = float_to_e4m3(x[i] / scale);
  }
  return scale;
}

// Only the last addition of a fold joins more than 64 values, so that every sum is the exact one,
// rounded once (see sm90_group_sums.h).
void group_sums_row(const uint8_t* codes, int64_t k, int group_log2, float* sums, int64_t pitch) {
  const int64_t group = 1 << group_log2;
  for (int64_t first = 0; first < k; first += group, sums += pitch) {
    float lanes[32] = {};
    const int64_t columns = k - first < group ? k - first : group;  // a multiple of 32
    for (int64_t step = 0; step < columns; step += 32) {
      for (int i = 0; i < 32; ++i) lanes[i] += kE4M3Table[codes[first + step + i]];
    }
    *sums = fold(lanes, 32);
  }
}

// The squares are added up as the threads of the GPU's kernel do it: thread by thread, then by
// halves within a thread's eight sums, within its warp and over the warps.
static float sum_of_squares(const float* h, int64_t k) {
  constexpr int kLanes = 32, kMaxWarps = row_warps(int64_t(1) << 40);
  float sums[kMaxWarps * kLanes * kRowRun] = {};
  const int warps = row_warps(k), threads = warps * kLanes;
  for (int64_t first = 0; first < k; first += threads * kRowRun) {
    const int64_t columns = std::min<int64_t>(k - first, threads * kRowRun);
    for (int64_t i = 0; i < columns; ++i) sums[i] = fmaf(h[first + i], h[first + i], sums[i]);
  }
  for (int thread = 0; thread < threads; ++thread)
    sums[thread] = fold(sums + thread * kRowRun, kRowRun);
  for (int warp = 0; warp < warps; ++warp) sums[warp] = fold(sums + warp * kLanes, kLanes);
  return fold(sums, warps);
}

void rms_norm_row(float* h, const float* weight, int64_t k, float eps) {
  const float factor = 1.0f / std::sqrt(sum_of_squares(h, k) / float(k) + eps);
  for (int64_t i = 0; i < k; ++i) h[i] = h[i] * factor * weight[i];
}

void silu_mul_row(const float* gate, const float* up, int64_t k, float* v) {
  const auto divide = [](float x, float d) { return x / d; };
  for (int64_t i = 0; i < k; ++i) v[i] = silu(gate[i], divide) * up[i];
}

}  // namespace wlib::int4fp8::WLIB_ISA
