#include "prefill/cpu_kernels.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace wlib::prefill::WLIB_ISA {
namespace {

// Plain loops over neighbouring floats: the compiler turns each into vector code of its set.

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Sixteen E4M3 bytes of codes -> code * scale, `step` floats apart.
void convert(const uint32_t (&words)[4], float scale, float* out, int step) {
  uint8_t bytes[16];
  float values[16];
  std::memcpy(bytes, words, sizeof bytes);
  for (int i = 0; i < 16; ++i) {
    const int magnitude = bytes[i] & int4kv::kLargestCode;
    values[i] = float(bytes[i] & 0x80 ? -magnitude : magnitude) * scale;
  }
  for (int i = 0; i < 16; ++i) out[i * step] = values[i];
}

// One row of a run, units of 32 columns.
void unpack_row(const uint8_t* run, int row, int rows, int columns, float scale, float* out,
                int step) {
  for (int column = 0; column < columns; column += int4kv::kUnitColumns) {
    uint32_t words[4], first[4], second[4];
    std::memcpy(words, run + int4kv::position(row, column, rows).magnitude_byte, sizeof words);
    for (int i = 0; i < 4; ++i) {
      first[i] = int4kv::first_bytes(words[i]);
      second[i] = int4kv::second_bytes(words[i]);
    }
    convert(first, scale, out + column * step, step);
    convert(second, scale, out + (column + 16) * step, step);
  }
}

void unpack_keys(const uint8_t* run, const float* scale, int head_dim, float* out) {
  for (int token = 0; token < kBlock; ++token)
    unpack_row(run, token, kBlock, head_dim, scale[token], out + token, kBlock);
}

void unpack_values(const uint8_t* run, const float* scale, int head_dim, float* out) {
  float slots[kBlock];
  for (int channel = 0; channel < head_dim; ++channel) {
    unpack_row(run, channel, head_dim, kBlock, 1.0f, slots, 1);
    for (int token = 0; token < kBlock; ++token)
      out[token * head_dim + channel] = slots[int4kv::value_slot(token)] * scale[token];
  }
}

// kRows rows of c[.][columns] (+)= a[.][depth] * b[depth][columns], 64 columns at a time.
template <int kRows>
void multiply_rows(const float* a, int a_stride, const float* b, int b_stride, int depth, float* c,
                   int c_stride, bool accumulate) {
  float sum[kRows][kBlock] = {};
  for (int k = 0; k < depth; ++k) {
    for (int r = 0; r < kRows; ++r) {
      const float factor = a[r * a_stride + k];
      for (int i = 0; i < kBlock; ++i) sum[r][i] += factor * b[k * b_stride + i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kBlock; ++i)
      c[r * c_stride + i] = accumulate ? c[r * c_stride + i] + sum[r][i] : sum[r][i];
  }
}
void multiply(const float* a, int a_stride, const float* b, int b_stride, int depth, float* c,
              int c_stride, int rows, bool accumulate) {
  constexpr int kRows = 4;
  int r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply_rows<kRows>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride,
                         accumulate);
  }
  for (; r < rows; ++r) {
    multiply_rows<1>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride,
                     accumulate);
  }
}

void multiply_keys(const float* q, const float* keys, int rows, int head_dim, float* scores) {
  multiply(q, head_dim, keys, kBlock, head_dim, scores, kBlock, rows, false);
}
void add_values(const float* p, const float* values, int rows, int head_dim, float* out) {
  for (int first = 0; first < head_dim; first += kBlock)
    multiply(p, kBlock, values + first, head_dim, kBlock, out + first, head_dim, rows, true);
}

// e^x for x <= 0 within 2 units in the last place; 0 below -87, where results are no longer normal.
float exp_of_negative(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * kLog2E + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = clamped - n * kLn2High - n * kLn2Low;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) - 0x4b400000u + 127) << 23;
  const float result = y * std::bit_cast<float>(power);
  return x < -87.0f ? 0.0f : x != x ? x : result;
}

void softmax(float* scores, const int* begin, const int* end, int rows, int head_dim,
             RowState* state, float* out) {
  for (int r = 0; r < rows; ++r) {
    float* s = scores + r * kBlock;
    for (int i = 0; i < kBlock; ++i) s[i] = i >= begin[r] && i < end[r] ? s[i] : kNone;
    float largest = state[r].largest;
    bool nan = false;
    for (int i = 0; i < kBlock; ++i) {
      largest = s[i] > largest ? s[i] : largest;
      nan |= s[i] != s[i];
    }
    if (nan) largest = std::numeric_limits<float>::quiet_NaN();
    if (largest == kNone) {  // nothing seen yet
      for (int i = 0; i < kBlock; ++i) s[i] = 0;
      continue;
    }
    const float rescale = std::exp(state[r].largest - largest);  // 0 in the row's first step
    float sum[16] = {};
    for (int i = 0; i < kBlock; i += 16) {
      for (int j = 0; j < 16; ++j) {
        s[i + j] = exp_of_negative(s[i + j] - largest);
        sum[j] += s[i + j];
      }
    }
    float total = 0;
    for (float part : sum) total += part;
    state[r] = {largest, state[r].sum * rescale + total};
    for (int d = 0; d < head_dim; ++d) out[r * head_dim + d] *= rescale;
  }
}

}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {unpack_keys, unpack_values, multiply_keys, softmax, add_values};

}  // namespace wlib::prefill::WLIB_ISA
