// The inner loops of the quantiser, compiled once per instruction set like cpu_kernels.cpp, whose
// table lists them.
#include <bit>
#include <cstring>

#include "int4fp8/cpu_kernels.h"

namespace wlib::int4fp8::WLIB_ISA {
namespace {

// Adds up the values by halving: the upper half onto the lower one, until one is left.
template <int kCount>
float fold(float (&values)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2) {
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
    *sums = fold(lanes);
  }
}

}  // namespace wlib::int4fp8::WLIB_ISA
