#include "int4fp8/cpu_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "wlib/numerics/odd_code.h"

namespace wlib::int4fp8::WLIB_ISA {
namespace {

using Float4 = float __attribute__((vector_size(16)));
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Floats = float __attribute__((vector_size(kLanes * 4)));
using Ints = int32_t __attribute__((vector_size(kLanes * 4)));
constexpr int kParts = 16 / kLanes;  // vectors that hold 8 columns of each of two steps

constexpr int kRun =
    64;  // the codes of a row in half a tile are one run of bytes, shared with row + 8

// Column in the half tile -> place in the run.
constexpr int run_offset(int column) { return column % 16 / 4 * 16 + column / 16 * 4 + column % 4; }

// The 64 codes of rows r and r + 8 in one run; sign and magnitude give q = s ? -mag - 1 : mag = mag
// ^ -s. Plain loops over fixed counts: the compiler turns each into a few vector instructions.
struct Codes {
  alignas(64) float a[kRun], b[kRun];
};
void decode_run(const uint8_t* bytes, Codes& codes) {
  alignas(64) int8_t a[kRun], b[kRun];
  for (int i = 0; i < kRun; ++i) {
    const int8_t byte = int8_t(bytes[i]);
    a[i] = int8_t((byte >> 1 & 7) ^ (byte >> 7));
    b[i] = int8_t((byte >> 4 & 7) ^ -(byte & 1));
  }
  for (int i = 0; i < kRun; ++i) codes.a[i] = float(a[i]);
  for (int i = 0; i < kRun; ++i) codes.b[i] = float(b[i]);
}

Floats load_floats(const float* x) {
  Floats value;
  std::memcpy(&value, x, sizeof value);
  return value;
}
// Lane i of the result is lane i + kShift of v.
template <int kShift>
Floats rotate(Floats v) {
  Ints lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = (i + kShift) % kLanes;
  return __builtin_shuffle(v, lanes);
}
float add_lanes(const Floats (&v)[kParts]) {
  Floats sum = v[0];
  if constexpr (kParts == 2) sum += v[kParts - 1];
  if constexpr (kLanes == 16) sum += rotate<8>(sum);
  sum += rotate<4>(sum);
  sum += rotate<2>(sum);
  sum += rotate<1>(sum);
  return sum[0];
}

// Scale and zero point of a row for each of a tile's four steps.
struct RowScales {
  float scale[4], zero[4];
};
RowScales load_scales(const uint8_t* tile, int4::Layout layout, int row) {
  RowScales s{};
  const int steps = 4 / layout.groups_per_tile;  // that share a group
  for (int group = 0; group < layout.groups_per_tile; ++group) {
    const int at = group * int4::kTileRows + int4::scale_index(row);
    uint16_t bits;
    std::memcpy(&bits, tile + layout.scales_offset() + at * 2, 2);
    float zero = 0;
    if (layout.zero_points) std::memcpy(&zero, tile + layout.zeros_offset() + at * 4, 4);
    for (int step = group * steps; step < (group + 1) * steps; ++step) {
      s.scale[step] = std::bit_cast<float>(uint32_t(bits) << 16);
      s.zero[step] = zero;
    }
  }
  return s;
}
const uint8_t* run_of(const uint8_t* tile, int half, int row) {  // row is the first of its pair
  return tile + half * 2048 + (row / 16 * 32 + row % 8 * 4) * 16;
}

void expand(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE4M3Table[codes[i]];
}

void gather_activations(const uint8_t* x, int64_t k, int64_t k_tiles, float* values,
                        float* step_sums) {
  for (int64_t first = 0; first < k_tiles * int4::kTileColumns; first += kStep) {
    float step[kStep] = {};  // k is a multiple of 32: a step is whole or padding
    if (first < k) expand(x + first, kStep, step);
    float sum = 0;
    for (float value : step) sum += value;
    step_sums[first / kStep] = sum;
    float* run = values + first / kRun * kRun;
    for (int quad = 0; quad < kStep; quad += 4) {
      std::memcpy(run + run_offset(first % kRun + quad), step + quad, 4 * sizeof(float));
    }
  }
}

// The running sums of one token for rows r and r + 8; lanes are added up at the end.
struct PairSum {
  Floats a[kParts], b[kParts];
  float zero_a, zero_b;
};

// A run holds, for c = 0..3, columns 4c..4c+3 and 16+4c..16+4c+3 of its first step, then of its
// second.
struct RunScales {
  Floats part[kParts];
  RunScales(const RowScales& row, int half) {
    const Floats first = Floats{} + row.scale[half * 2],
                 second = Floats{} + row.scale[half * 2 + 1];
    if constexpr (kParts == 2) {
      part[0] = first;
      part[kParts - 1] = second;
    } else {
      Ints second_step{};
      for (int i = 8; i < kLanes; ++i) second_step[i] = -1;
      part[0] = second_step ? second : first;
    }
  }
};

void multiply_run(const Codes& codes, const float* x, const RunScales& scale_a,
                  const RunScales& scale_b, PairSum& sum) {
  for (int part = 0; part < kParts; ++part) {
    Floats a{}, b{};
    for (int c = 0; c < 4; ++c) {
      const int at = c * 16 + part * kLanes;
      const Floats value = load_floats(x + at);
      a += value * load_floats(codes.a + at);
      b += value * load_floats(codes.b + at);
    }
    sum.a[part] += a * scale_a.part[part];
    sum.b[part] += b * scale_b.part[part];
  }
}

// One pair of rows of one tile, for tokens whose activations are `stride` floats apart.
void multiply_pair(const uint8_t* tile, int4::Layout layout, int row, const float* values,
                   const float* step_sums, int64_t stride, int64_t m, PairSum* sums) {
  const RowScales scales[2] = {load_scales(tile, layout, row), load_scales(tile, layout, row + 8)};
  for (int half = 0; half < 2; ++half) {
    Codes codes;
    decode_run(run_of(tile, half, row), codes);
    const RunScales scale_a(scales[0], half), scale_b(scales[1], half);
    for (int64_t token = 0; token < m; ++token) {
      multiply_run(codes, values + token * stride + half * kRun, scale_a, scale_b, sums[token]);
    }
  }
  if (!layout.zero_points) return;
  for (int64_t token = 0; token < m; ++token) {
    const float* x_sum = step_sums + token * stride / kStep;
    for (int step = 0; step < 4; ++step) {
      sums[token].zero_a += scales[0].scale[step] * (scales[0].zero[step] * x_sum[step]);
      sums[token].zero_b += scales[1].scale[step] * (scales[1].zero[step] * x_sum[step]);
    }
  }
}

constexpr int kPairs = int4::kTileRows / 2;
constexpr int first_row(int pair) { return pair / 8 * 16 + pair % 8; }
constexpr int64_t kChunk =
    4;  // tiles that stay in the first-level cache while all pairs take theirs

void prefetch(const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + i);
}

// The whole block for as many tokens as have their running sums in the first-level cache.
template <int kTokens>
void multiply_tokens(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                     const float* values, const float* step_sums, int64_t m, float* out,
                     int64_t out_stride) {
  const int64_t stride = k_tiles * int4::kTileColumns, bytes = layout.tile_bytes();
  PairSum sums[kPairs][kTokens];
  for (auto& pair : sums) std::fill_n(pair, m, PairSum{});
  prefetch(block, std::min(kChunk, k_tiles) * bytes);
  for (int64_t first = 0; first < k_tiles; first += kChunk) {
    const int64_t end = std::min(first + kChunk, k_tiles);
    prefetch(block + end * bytes, (std::min(end + kChunk, k_tiles) - end) * bytes);
    for (int pair = 0; pair < kPairs; ++pair) {
      PairSum running[kTokens];
      std::copy_n(sums[pair], m, running);
      for (int64_t tile = first; tile < end; ++tile) {
        multiply_pair(block + tile * bytes, layout, first_row(pair),
                      values + tile * int4::kTileColumns, step_sums + tile * 4, stride, m, running);
      }
      std::copy_n(running, m, sums[pair]);
    }
  }
  for (int pair = 0; pair < kPairs; ++pair) {
    float* rows = out + first_row(pair) * out_stride;
    for (int64_t token = 0; token < m; ++token) {
      rows[token] = add_lanes(sums[pair][token].a) - sums[pair][token].zero_a;
      rows[8 * out_stride + token] = add_lanes(sums[pair][token].b) - sums[pair][token].zero_b;
    }
  }
}

void multiply_block(const uint8_t* block, int64_t k_tiles, int4::Layout layout, const float* values,
                    const float* step_sums, int64_t m, float* out) {
  constexpr int64_t kTokens = 8;
  if (m == 1) return multiply_tokens<1>(block, k_tiles, layout, values, step_sums, 1, out, 1);
  for (int64_t first = 0; first < m; first += kTokens) {
    const int64_t count = m - first < kTokens ? m - first : kTokens;
    multiply_tokens<kTokens>(block, k_tiles, layout, values + first * k_tiles * int4::kTileColumns,
                             step_sums + first * k_tiles * 4, count, out + first, m);
  }
}

void dequantize_run(const float* codes, const RowScales& s, int half, int64_t columns, float* out) {
  for (int quad = 0; quad < columns / 4; ++quad) {  // k is a multiple of 32, so columns is
    const int step = half * 2 + quad / 8;
    Float4 q;
    std::memcpy(&q, codes + run_offset(quad * 4), sizeof q);
    q = s.scale[step] * (q - s.zero[step]);
    std::memcpy(out + quad * 4, &q, sizeof q);
  }
}

void dequantize_block(const uint8_t* block, int64_t k_tiles, int4::Layout layout, int rows,
                      int64_t k, float* out) {
  Codes codes;
  for (int64_t tile = 0; tile < k_tiles; ++tile, block += layout.tile_bytes()) {
    for (int row = 0; row < int4::kTileRows; row += row % 8 == 7 ? 9 : 1) {
      if (row >= rows) break;
      const RowScales a = load_scales(block, layout, row), b = load_scales(block, layout, row + 8);
      for (int half = 0; half < 2; ++half) {
        const int64_t column = tile * int4::kTileColumns + half * kRun;
        const int64_t columns = k - column < kRun ? k - column : kRun;
        if (columns <= 0) break;
        decode_run(run_of(block, half, row), codes);
        dequantize_run(codes.a, a, half, columns, out + row * k + column);
        if (row + 8 < rows) dequantize_run(codes.b, b, half, columns, out + (row + 8) * k + column);
      }
    }
  }
}

#define WLIB_TEXT_(x) #x
#define WLIB_TEXT(x) WLIB_TEXT_(x)

}  // namespace

// cpu_quantize_kernels.cpp
float quantize_row(const float* x, int64_t k, uint8_t* codes);
void group_sums_row(const uint8_t* codes, int64_t k, int group_log2, float* sums, int64_t pitch);

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    WLIB_TEXT(WLIB_ISA), gather_activations, multiply_block, dequantize_block, expand,
    quantize_row,        group_sums_row};

}  // namespace wlib::int4fp8::WLIB_ISA
