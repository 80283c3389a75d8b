#include "int4fp8/cpu_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "wlib/numerics/odd_code.h"

namespace wlib::int4fp8::WLIB_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Floats = float __attribute__((vector_size(kLanes * 4)));
using Ints = int32_t __attribute__((vector_size(kLanes * 4)));
constexpr int kParts = 16 / kLanes;  // vectors that hold 8 columns of each of two steps

constexpr int kRun = 64;  // the codes of rows r and r + 8 in half a tile are one run of 64 bytes

// A run is four vectors of 16 lanes (or eight of 8): lane l of vector j is byte j of 32-bit word l
// of the run, which stands for column l % 4 * 16 + l / 4 * 4 + j of the half tile.
using Run = Floats[4][kParts];

// Words of odd-coded pairs -> words of two's complement nibbles: q = m or -(m + 1) = m ^ -sign.
Ints to_nibbles(Ints w) {
  const Ints signs = (w >> 7 & 0x01010101) | (w & 0x01010101) << 4;
  return ((w >> 1 & 0x07070707) | (w & 0x70707070)) ^ ((signs << 4) - signs);
}
template <int kNibble>
Floats nibble_value(Ints words) {
  if constexpr (kLanes == 16) {  // a look-up takes the low four bits of its index
    Floats values{};
    for (int i = 0; i < kLanes; ++i) values[i] = float(i < 8 ? i : i - 16);
    return __builtin_shuffle(values, words >> 4 * kNibble);
  } else {
    return __builtin_convertvector(words << (28 - 4 * kNibble) >> 28, Floats);
  }
}

// The codes of rows r (a) and r + 8 (b) in half a tile.
struct Codes {
  Run a, b;

  explicit Codes(const uint8_t* bytes) {
    for (int part = 0; part < kParts; ++part) {
      Ints words;
      std::memcpy(&words, bytes + part * sizeof words, sizeof words);
      words = to_nibbles(words);
      a[0][part] = nibble_value<0>(words), b[0][part] = nibble_value<1>(words);
      a[1][part] = nibble_value<2>(words), b[1][part] = nibble_value<3>(words);
      a[2][part] = nibble_value<4>(words), b[2][part] = nibble_value<5>(words);
      a[3][part] = nibble_value<6>(words), b[3][part] = nibble_value<7>(words);
    }
  }
};

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

// In each group of four lanes: lanes k0, k1 of x, then lanes k2, k3 of y.
template <int k0, int k1, int k2, int k3>
Floats pick(Floats x, Floats y) {
  Ints lanes{};
  for (int i = 0; i < kLanes; i += 4) {
    lanes[i] = i + k0, lanes[i + 1] = i + k1;
    lanes[i + 2] = kLanes + i + k2, lanes[i + 3] = kLanes + i + k3;
  }
  return __builtin_shuffle(x, y, lanes);
}
// Between a run and its columns in order: vector v of part p then is columns 16 v + p * kLanes and
// on. The same function serves both ways.
void transpose(Run& run) {
  for (int part = 0; part < kParts; ++part) {
    const Floats low[2] = {pick<0, 1, 0, 1>(run[0][part], run[1][part]),
                           pick<0, 1, 0, 1>(run[2][part], run[3][part])};
    const Floats high[2] = {pick<2, 3, 2, 3>(run[0][part], run[1][part]),
                            pick<2, 3, 2, 3>(run[2][part], run[3][part])};
    run[0][part] = pick<0, 2, 0, 2>(low[0], low[1]);
    run[1][part] = pick<1, 3, 1, 3>(low[0], low[1]);
    run[2][part] = pick<0, 2, 0, 2>(high[0], high[1]);
    run[3][part] = pick<1, 3, 1, 3>(high[0], high[1]);
  }
}

// Scale and zero point of a row for each of a tile's four steps.
struct RowScales {
  float scale[4], zero[4];
};
template <int kGroups>
RowScales load_scales(const uint8_t* tile, int4::Layout layout, int row) {
  RowScales s{};
  constexpr int kSteps = 4 / kGroups;  // that share a group
  for (int group = 0; group < kGroups; ++group) {
    const int at = group * int4::kTileRows + int4::scale_index(row);
    uint16_t bits;
    std::memcpy(&bits, tile + int4::kCodeBytes + at * 2, 2);
    float zero = 0;
    if (layout.zero_points) std::memcpy(&zero, tile + layout.zeros_offset() + at * 4, 4);
    for (int step = group * kSteps; step < (group + 1) * kSteps; ++step) {
      s.scale[step] = std::bit_cast<float>(uint32_t(bits) << 16);
      s.zero[step] = zero;
    }
  }
  return s;
}
// Of half a tile's two steps, where a run has their columns.
template <int kGroups>
Floats run_scale(const RowScales& row, int half) {
  const Floats first = Floats{} + row.scale[half * 2];
  if constexpr (kGroups < 4) return first;  // both share a group
  Ints in_second{};
  for (int i = 0; i < kLanes; ++i) in_second[i] = -(i % 4 / 2);
  return in_second ? Floats{} + row.scale[half * 2 + 1] : first;
}
const uint8_t* run_of(const uint8_t* tile, int half, int row) {  // row is the first of its pair
  return tile + half * 2048 + (row / 16 * 32 + row % 8 * 4) * 16;
}

void expand(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE4M3Table[codes[i]];
}

void gather_activations(const uint8_t* x, int64_t k, int64_t k_tiles, float* values,
                        float* step_sums) {
  for (int64_t first = 0; first < k_tiles * int4::kTileColumns; first += kRun) {
    float columns[kRun] = {};  // k is a multiple of 32: a step is whole or padding
    if (first < k) expand(x + first, k - first < kRun ? k - first : kRun, columns);
    Run run;
    std::memcpy(run, columns, sizeof run);
    for (int step = 0; step < 2; ++step) {
      Floats sum[kParts];
      for (int part = 0; part < kParts; ++part)
        sum[part] = run[step * 2][part] + run[step * 2 + 1][part];
      step_sums[first / kStep + step] = add_lanes(sum);
    }
    transpose(run);
    std::memcpy(values + first, run, sizeof run);
  }
}

// The running sums of one token for rows r and r + 8; lanes are added up at the end.
struct PairSum {
  Floats a[kParts], b[kParts];
  float zero_a, zero_b;
};

void multiply_run(const Codes& codes, const float* x, Floats scale_a, Floats scale_b,
                  PairSum& sum) {
  for (int part = 0; part < kParts; ++part) {
    Floats a{}, b{};
    for (int j = 0; j < 4; ++j) {
      const Floats value = load_floats(x + (j * kParts + part) * kLanes);
      a += value * codes.a[j][part];
      b += value * codes.b[j][part];
    }
    sum.a[part] += a * scale_a;
    sum.b[part] += b * scale_b;
  }
}

// One pair of rows of one tile, for tokens whose activations are `stride` floats apart.
template <int kGroups>
void multiply_pair(const uint8_t* tile, int4::Layout layout, int row, const float* values,
                   const float* step_sums, int64_t stride, int64_t m, PairSum* sums) {
  const RowScales scales[2] = {load_scales<kGroups>(tile, layout, row),
                               load_scales<kGroups>(tile, layout, row + 8)};
  for (int half = 0; half < 2; ++half) {
    const Codes codes(run_of(tile, half, row));
    const Floats scale_a = run_scale<kGroups>(scales[0], half),
                 scale_b = run_scale<kGroups>(scales[1], half);
    for (int64_t token = 0; token < m; ++token)
      multiply_run(codes, values + token * stride + half * kRun, scale_a, scale_b, sums[token]);
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
template <int kTokens, int kGroups>
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
        multiply_pair<kGroups>(block + tile * bytes, layout, first_row(pair),
                               values + tile * int4::kTileColumns, step_sums + tile * 4, stride, m,
                               running);
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

template <int kGroups>
void multiply_groups(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                     const float* values, const float* step_sums, int64_t m, float* out) {
  constexpr int64_t kTokens = 8;
  if (m == 1) {
    return multiply_tokens<1, kGroups>(block, k_tiles, layout, values, step_sums, 1, out, 1);
  }
  for (int64_t first = 0; first < m; first += kTokens) {
    const int64_t count = m - first < kTokens ? m - first : kTokens;
    multiply_tokens<kTokens, kGroups>(block, k_tiles, layout,
                                      values + first * k_tiles * int4::kTileColumns,
                                      step_sums + first * k_tiles * 4, count, out + first, m);
  }
}

template <int kGroups>
void dequantize_groups(const uint8_t* block, int64_t k_tiles, int4::Layout layout, int rows,
                       int64_t k, float* out) {
  const auto store = [&](Run& codes, const RowScales& s, int64_t column, int row) {
    const int half = column / kRun % 2;
    transpose(codes);
    for (int v = 0; v < 4; ++v) {  // 16 columns each; k is a multiple of 32
      if (column + v * 16 >= k) break;
      const int step = half * 2 + v / 2;
      for (Floats& q : codes[v]) q = s.scale[step] * (q - s.zero[step]);
      std::memcpy(out + row * k + column + v * 16, codes[v], sizeof codes[v]);
    }
  };
  for (int64_t tile = 0; tile < k_tiles; ++tile, block += layout.tile_bytes()) {
    for (int pair = 0; pair < kPairs && first_row(pair) < rows; ++pair) {
      const int row = first_row(pair);
      const RowScales a = load_scales<kGroups>(block, layout, row),
                      b = load_scales<kGroups>(block, layout, row + 8);
      for (int half = 0; half < 2; ++half) {
        const int64_t column = tile * int4::kTileColumns + half * kRun;
        Codes codes(run_of(block, half, row));
        store(codes.a, a, column, row);
        if (row + 8 < rows) store(codes.b, b, column, row + 8);
      }
    }
  }
}

// Calls f with the groups per tile as a constant.
template <class F>
void with_groups(int4::Layout layout, F f) {
  switch (layout.groups_per_tile) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    default: return f(std::integral_constant<int, 4>{});
  }
}
void multiply_block(const uint8_t* block, int64_t k_tiles, int4::Layout layout, const float* values,
                    const float* step_sums, int64_t m, float* out) {
  with_groups(layout, [&](auto groups) {
    multiply_groups<groups()>(block, k_tiles, layout, values, step_sums, m, out);
  });
}
void dequantize_block(const uint8_t* block, int64_t k_tiles, int4::Layout layout, int rows,
                      int64_t k, float* out) {
  with_groups(layout, [&](auto groups) {
    dequantize_groups<groups()>(block, k_tiles, layout, rows, k, out);
  });
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
