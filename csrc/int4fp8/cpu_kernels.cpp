#include "int4fp8/cpu_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "int4fp8/cpu_simd.h"

namespace wlib::int4fp8::WLIB_ISA {
namespace {

constexpr int kRows = int4::kTileRows, kPairs = kRows / 2;
// The second row of a pair is 8 further on.
constexpr int first_row(int pair) { return pair / 8 * 16 + pair % 8; }
const uint8_t* run_of(const uint8_t* tile, int half, int pair) {
  return tile + (half * kPairs + pair) * kRun;
}

void expand(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE4M3Table[codes[i]];
}

// Scales and zero points of a tile by group, row of a pair and pair.
template <int kGroups>
struct TileScales {
  float scale[kGroups][2][kPairs], zero[kGroups][2][kPairs];

  TileScales(const uint8_t* tile, int4::Layout layout) {
    for (int group = 0; group < kGroups; ++group) {
      for (int pair = 0; pair < kPairs; ++pair) {
        uint32_t both;
        std::memcpy(&both, tile + layout.scales_offset() + (group * kPairs + pair) * 4, 4);
        scale[group][0][pair] = std::bit_cast<float>(both << 16);
        scale[group][1][pair] = std::bit_cast<float>(both & 0xffff0000u);
      }
      if (!layout.zero_points) continue;
      for (int pair = 0; pair < kPairs; ++pair) {
        float both[2];
        std::memcpy(both, tile + layout.zeros_offset() + (group * kPairs + pair) * 8, 8);
        zero[group][0][pair] = both[0], zero[group][1][pair] = both[1];
      }
    }
  }
};
// The value of a group of each column of a part of a tile, where a run has its columns.
template <int kGroups>
Floats by_lane(const float (&values)[kGroups][2][kPairs], int part, int row, int pair) {
  if constexpr (kGroups < 4) return broadcast(values[part][row][pair]);
  Ints in_second{};
  for (int i = 0; i < kLanes; ++i) in_second[i] = -(i % 4 / 2);
  return in_second ? broadcast(values[part * 2 + 1][row][pair])
                   : broadcast(values[part * 2][row][pair]);
}

constexpr int kDigits = 3;
// Sums for one row are made over whole tiles if their columns share a group, else over halves.
constexpr int parts_of(int groups) { return groups == 1 ? 1 : 2; }

// Sum of x * code in lanes, exact: at most 8 products to a lane, each below 2^21.
template <int kHalves>
Ints multiply(const Ints (&codes)[kHalves][kParts], const int8_t (*digits)[kDigits][kRun],
              Ints offset) {
  const auto add_products = [&](Ints sums, int digit) {
    for (int half = 0; half < kHalves; ++half) {
      for (int part = 0; part < kParts; ++part)
        sums = dot(sums, codes[half][part], load<Ints>(digits[half][digit] + part * sizeof(Ints)));
    }
    return sums;
  };
  Ints total = kWideSums ? add_products(offset, 0) : widen(offset, add_products(Ints{}, 0), 1);
  for (int digit = 1; digit < kDigits; ++digit)
    total = widen(total, add_products(Ints{}, digit), 1 << 7 * digit);
  return total;
}
// Digits of the magnitudes of a word's four codes, significand << max(exponent, 1) - 1: 18 bits.
void to_digits(Ints codes, Ints (&digits)[kDigits]) {
  for (int byte = 0; byte < 4; ++byte) {
    const Ints code = codes >> 8 * byte & 0x7f, normal = code > 7;
    const Ints magnitude = ((code & 7) | (normal & 8)) << ((code >> 3) + normal);
    for (int digit = 0; digit < kDigits; ++digit)
      digits[digit] |= (magnitude >> 7 * digit & 127) << 8 * byte;
  }
}

void gather_run(const uint8_t* x, int64_t count, int8_t (*digits)[kRun], Bytes& nan) {
  Ints codes[kParts] = {};
  if (count >= kRun)
    std::memcpy(codes, x, kRun);
  else if (count > 0)  // k is a multiple of 32
    std::memcpy(codes, x, kRun / 2);
  transpose(codes);
  for (int part = 0; part < kParts; ++part) {
    const Bytes code = Bytes(codes[part]), negative = code < 0;
    nan |= (code & 127) == 127;
    Ints magnitudes[kDigits] = {};
    to_digits(codes[part], magnitudes);
    for (int digit = 0; digit < kDigits; ++digit) {
      const Bytes value = (Bytes(magnitudes[digit]) ^ negative) - negative;
      std::memcpy(digits[digit] + part * sizeof value, &value, sizeof value);
    }
  }
}
template <int kTileParts>
void store_offsets(TileActivations& tile) {
  constexpr int kHalves = 2 / kTileParts;
  Ints eights[kHalves][kParts];
  for (auto& half : eights) std::fill_n(half, kParts, Ints{} + 0x08080808);
  for (int part = 0; part < kTileParts; ++part) {
    const Ints offset = -multiply<kHalves>(eights, tile.digits + part, Ints{});
    std::memcpy(tile.offsets[part], &offset, sizeof offset);
  }
}
float gather_activations(const uint8_t* x, int64_t k, int64_t k_tiles, int4::Layout layout,
                         TileActivations* tiles) {
  Bytes nan{};
  for (int64_t tile = 0; tile < k_tiles; ++tile) {
    for (int half = 0; half < 2; ++half) {
      const int64_t first = tile * int4::kTileColumns + half * kRun;
      gather_run(x + first, k - first, tiles[tile].digits[half], nan);
    }
    layout.groups_per_tile == 1 ? store_offsets<1>(tiles[tile]) : store_offsets<2>(tiles[tile]);
  }
  for (int i = 0; i < 4 * kLanes; ++i)
    if (nan[i]) return __builtin_nanf("");
  return 0;
}

// The whole block for as many tokens as have their running sums in the first-level cache.
template <int kTokens, int kGroups, bool kZeros>
void multiply_tokens(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                     const TileActivations* x, const float* starts, int64_t m, float* out) {
  constexpr int kTileParts = parts_of(kGroups), kHalves = 2 / kTileParts;
  if constexpr (kTokens == 1) m = 1;
  Floats sums[kRows][kTokens];
  for (auto& row : sums) {
    for (int64_t token = 0; token < m; ++token) row[token] = broadcast(starts[token]);
  }
  for (int64_t t = 0; t < k_tiles; ++t) {
    const uint8_t* tile = block + t * layout.tile_bytes();
    const TileScales<kGroups> scales(tile, layout);
    for (int pair = 0; pair < kPairs; ++pair) {
      auto* pair_sums = &sums[first_row(pair)];
      for (int tile_part = 0; tile_part < kTileParts; ++tile_part) {
        Ints codes[2][kHalves][kParts];
        for (int half = 0; half < kHalves; ++half) {
          const uint8_t* run = run_of(tile, tile_part + half, pair);
          for (int part = 0; part < kParts; ++part) {
            const CodePair both = unpack(load<Ints>(run + part * sizeof(Ints)));
            codes[0][half][part] = both.a, codes[1][half][part] = both.b;
          }
        }
        for (int row = 0; row < 2; ++row) {
          const Floats scale = by_lane<kGroups>(scales.scale, tile_part, row, pair);
          Floats zero{};
          if constexpr (kZeros) zero = by_lane<kGroups>(scales.zero, tile_part, row, pair) * 0.125f;
          for (int64_t token = 0; token < m; ++token) {
            const TileActivations& a = x[token * k_tiles + t];
            const Ints offset = load<Ints>(a.offsets[tile_part]);
            Floats value = __builtin_convertvector(
                multiply<kHalves>(codes[row], a.digits + tile_part, offset), Floats);
            if constexpr (kZeros) value += zero * __builtin_convertvector(offset, Floats);
            pair_sums[8 * row][token] += value * scale;
          }
        }
      }
    }
  }
  for (int64_t token = 0; token < m; ++token) {
    for (int row = 0; row < kRows; row += kLanes) {
      const Floats result = add_lanes(&sums[row][token], kTokens) * 0x1p-9f;
      std::memcpy(out + token * kRows + row, &result, sizeof result);
    }
  }
}

template <int kGroups, bool kZeros>
void multiply_groups(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                     const TileActivations* x, const float* starts, int64_t m, float* out) {
  constexpr int64_t kTokens = 8;
  if (m == 1) return multiply_tokens<1, kGroups, kZeros>(block, k_tiles, layout, x, starts, 1, out);
  for (int64_t first = 0; first < m; first += kTokens) {
    multiply_tokens<kTokens, kGroups, kZeros>(block, k_tiles, layout, x + first * k_tiles,
                                              starts + first, std::min(m - first, kTokens),
                                              out + first * kRows);
  }
}

template <int kGroups>
void dequantize_groups(const uint8_t* block, int64_t k_tiles, int4::Layout layout, int rows,
                       int64_t k, float* out) {
  const auto store = [&](Ints(&codes)[kParts], const TileScales<kGroups>& s, int64_t first,
                         int pair, int row) {
    transpose(codes);
    uint8_t bytes[kRun];
    std::memcpy(bytes, codes, sizeof bytes);
    for (int step = 0; step < 2 && first + step * 32 < k; ++step) {  // k is a multiple of 32
      const int group = (first / kRun % 2 * 2 + step) * kGroups / 4;
      const float scale = s.scale[group][row][pair],
                  zero = layout.zero_points ? s.zero[group][row][pair] : 0;
      float* y = out + (first_row(pair) + row * 8) * k + first + step * 32;
      for (int i = 0; i < 32; ++i) y[i] = scale * (float(bytes[step * 32 + i] - 8) - zero);
    }
  };
  for (int64_t tile = 0; tile < k_tiles; ++tile, block += layout.tile_bytes()) {
    const TileScales<kGroups> scales(block, layout);
    for (int pair = 0; pair < kPairs && first_row(pair) < rows; ++pair) {
      for (int half = 0; half < 2; ++half) {
        Ints a[kParts], b[kParts];
        for (int part = 0; part < kParts; ++part) {
          const CodePair both = unpack(load<Ints>(run_of(block, half, pair) + part * sizeof(Ints)));
          a[part] = both.a, b[part] = both.b;
        }
        const int64_t first = tile * int4::kTileColumns + half * kRun;
        store(a, scales, first, pair, 0);
        if (first_row(pair) + 8 < rows) store(b, scales, first, pair, 1);
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
void multiply_block(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                    const TileActivations* x, const float* starts, int64_t m, float* out) {
  with_groups(layout, [&](auto groups) {
    if (layout.zero_points)
      multiply_groups<groups(), true>(block, k_tiles, layout, x, starts, m, out);
    else
      multiply_groups<groups(), false>(block, k_tiles, layout, x, starts, m, out);
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
void rms_norm_row(float* h, const float* weight, int64_t k, float eps);
void silu_mul_row(const float* gate, const float* up, int64_t k, float* v);
void group_sums_row(const uint8_t* codes, int64_t k, int group_log2, float* sums, int64_t pitch);

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    WLIB_TEXT(WLIB_ISA), gather_activations, multiply_block, dequantize_block, expand,
    quantize_row,        rms_norm_row,       silu_mul_row,   group_sums_row};

}  // namespace wlib::int4fp8::WLIB_ISA
