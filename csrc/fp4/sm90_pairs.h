// A tile of 16-bit values, BF16 or FP16, in shared memory, and how a thread takes its two units
// from it: as they are, or rotated by tensor cores.
//
// The units of a warp are the fragments of one matrix A [16 lines, 128]: step k of the product has
// the pairs 2 k and 2 k + 1 of each unit. So tensor cores see the values of a line in the order
// pair, unit, place in the pair, and the entries of the Hadamard matrix, the B of D = A B, follow
// it. The columns of B have the same order, which brings each unit of the rotated line back to the
// thread that had it.
#pragma once

#include <cmath>

#include "fp4/sm90_expand.h"
#include "fp4/sm90_tile.h"
#include "wlib/sm90/mma.h"

namespace wlib::fp4 {

// The pitch and the gaps between units put into different banks the 16 bytes of each of four units
// of two lines that lanes take along rows, and of the eight rows of a matrix of ldmatrix.
struct PairTile {
  static constexpr int kGap = 8;  // values
  static constexpr int kPitch = kTile + 4 * kGap;
  alignas(16) uint16_t values[kTile * kPitch + (kUnits - 1) * kGap];

  WLIB_DEVICE uint16_t* at(int row, int column) {
    return values + row * kPitch + row / kUnit * kGap + column + column / kUnit * kGap;
  }
};

// Codes become pairs j and j + 4 of a run of eight columns and stay so in the tile: the column at
// position i.
WLIB_DEVICE int interleaved_column(int i) { return (i & 1) << 2 | i >> 1; }

// Eight bytes, which may lie anywhere.
WLIB_DEVICE uint2 load_bytes(const uint8_t* from) {
  uint2 bytes{};
  for (int i = 0; i < 4; ++i) {
    bytes.x |= uint32_t(from[i]) << 8 * i;
    bytes.y |= uint32_t(from[4 + i]) << 8 * i;
  }
  return bytes;
}

// What values of packed nvfp4 are divided by in the tile: then a scale times 2^126 is BF16.
constexpr float kPackedNvFactor = 256;

// Packed values as BF16: code times scale, which is exact. A thread takes half a block of mxfp4 or
// a block of nvfp4 of every 32nd row.
template <bool kNv, bool kPlain = false>
WLIB_DEVICE void load_packed(const Source& from, Corner corner, PairTile& tile) {
  constexpr int kRun = 16, kRuns = kTile / kRun, kStep = kTileThreads / kRuns;
  constexpr int kBlock = kNv ? kNvBlock : kMxBlock;
  static_assert(kStep == kUnit);
  const Packed& packed = from.packed;
  const int row = tile_thread() / kRuns, column = tile_thread() % kRuns * kRun;
  const int columns = int(from.columns);
  const int left = corner.column + column < columns ? int(from.rows) - corner.row - row : 0;
  const auto at = uint64_t(corner.row + row) * uint32_t(columns) + corner.column + column;
  const uint8_t* first = packed.codes + at / 2;
  const uint8_t* first_scale = packed.scales + at / kBlock;
  const bool aligned = kPlain || reinterpret_cast<uintptr_t>(packed.codes) % 8 == 0;
  uint2 codes[kUnits] = {};
  uint32_t scales[kUnits] = {};
  WLIB_UNROLL
  for (int i = 0; i < kUnits; ++i) {
    if (!kPlain && i * kStep >= left) continue;
    const uint64_t further = uint64_t(i * kStep) * uint32_t(columns);
    const uint8_t* from = first + further / 2;
    codes[i] = aligned ? *reinterpret_cast<const uint2*>(from) : load_bytes(from);
    scales[i] = first_scale[further / kBlock];
  }
  // Codes expand to their values times 2^-126. A scale times 2^126 is not always BF16, and then
  // there are two products.
  const auto expand = [&](auto in_two, auto factor_of) {
    WLIB_UNROLL
    for (int i = 0; i < kUnits; ++i) {
      const uint32_t factor = factor_of(scales[i]);
      uint16_t* to = tile.at(i * kStep, column) + row * PairTile::kPitch;
      WLIB_UNROLL
      for (int j = 0; j < 2; ++j) {
        PairQuarter four;
        expand_pairs(j == 0 ? codes[i].x : codes[i].y, four.pair);
        WLIB_UNROLL
        for (uint32_t& pair : four.pair) {
          if (in_two.value) pair = sm90::multiply_bf16x2(pair, kPairUnit);
          pair = sm90::multiply_bf16x2(pair, factor);
        }
        *reinterpret_cast<PairQuarter*>(to + 8 * j) = four;
      }
    }
  };
  if constexpr (kNv)
    expand(std::false_type{}, [](uint32_t scale) {
      return pair_of(e4m3_to_float(uint8_t(scale)) * (0x1p126f / kPackedNvFactor));
    });
  else if ((scales[0] | scales[1] | scales[2] | scales[3]) < 128)  // all of them, of 1 at most
    expand(std::false_type{}, [](uint32_t scale) { return (scale + 126) * 0x00800080u; });
  else
    expand(std::true_type{}, [](uint32_t scale) { return e8m0_pair(scale); });
}

// What a lane has of the Hadamard matrix: for two pairs of k and a column a word each, entries 1 or
// -1 as BF16 or FP16. The first two pairs and the first column give words that are the same; by
// the numbers of other pairs and columns, which all lanes share, either sign may be the opposite.
// They lie in shared memory, so that each of the four cases has registers of its own. Bit 0 of the
// first index is the sign of the first pair's word, bit 1 that of the second's.
struct alignas(16) HadamardEntries {
  uint32_t word[4][2];
};
WLIB_HOST_DEVICE constexpr bool is_opposite(int pair, int column) {
  const int both = pair & column;
  return (both ^ both >> 1 ^ both >> 2 ^ both >> 3) & 1;
}
// Of this lane, for a rotation of `size`, a unit at least.
WLIB_DEVICE HadamardEntries hadamard_entries(int size, bool half) {
  constexpr uint32_t kMinus = 0x80008000u;
  const int lane = tile_lane(), column = lane / 4, to = column / 2, from = lane % 4;
  const int units = size / kUnit - 1, both = to & from & units;  // bits of units that rotate
  uint32_t word = half ? 0x3c003c00u : 0x3f803f80u;
  word ^= column % 2 ? 0x80000000u : 0;
  word ^= (both ^ both >> 1) & 1 ? kMinus : 0;
  if ((to ^ from) & ~units) word = 0;
  const uint32_t opposite = word ^ kMinus;
  return {{{word, word}, {opposite, word}, {word, opposite}, {opposite, opposite}}};
}

// The units of a side: the pairs 2 k and 2 k + 1 of the first and the second one, interleaved, are
// a fragment of A, whose lines are 8 apart.
struct PairSide {
  PairTile& tile;
  const UnitFlips& flips;          // of the lane's unit
  const HadamardEntries& entries;  // of the lane
  bool transposed;
  int hadamard;
};

// A quarter of the pairs as two fragments.
template <bool kTransposed>
WLIB_DEVICE void load_quarter(const PairSide& p, int quarter, uint32_t (&a)[kQuarter / 2][4]) {
  if constexpr (kTransposed) {
    const int lane = tile_lane(), line = Unit::first_line() + lane / 8 % 2 * kLinesAtOnce;
    const uint16_t* from = p.tile.at(lane % 8 / 2 * kUnit + lane / 16 * 2 + lane % 2, line) +
                           quarter * kQuarter * 2 * PairTile::kPitch;
    WLIB_UNROLL
    for (int i = 0; i < kQuarter / 2; ++i)
      sm90::load_matrices_transposed(a[i], from + i * 4 * PairTile::kPitch);
  } else {
    WLIB_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const Unit unit(0);
      const uint16_t* from = p.tile.at(unit.line, unit.block * kUnit) +
                             round * kLinesAtOnce * PairTile::kPitch + quarter * kQuarter * 2;
      const auto four = *reinterpret_cast<const PairQuarter*>(from);
      WLIB_UNROLL
      for (int i = 0; i < kQuarter; ++i) a[i / 2][i % 2 * 2 + round] = four.pair[i];
    }
  }
  const PairQuarter flip = p.flips.quarter[quarter];
  WLIB_UNROLL
  for (int i = 0; i < kQuarter; ++i) {
    a[i / 2][i % 2 * 2] ^= flip.pair[i];
    a[i / 2][i % 2 * 2 + 1] ^= flip.pair[i];
  }
}

// D[16, 8] += A[16, 16] B[16, 8]
template <bool kHalf>
WLIB_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kHalf)
    sm90::mma_f16(d, a, b);
  else
    sm90::mma_bf16(d, a, b);
}

// Both units of the thread, times the root of the rotation's size. Tells whether all values of the
// warp are finite: others spread to all of their line by products with zero.
template <bool kHalf, bool kTransposed>
WLIB_DEVICE bool rotate_pairs(const PairSide& p, float (&first)[kUnit], float (&second)[kUnit]) {
  const HadamardEntries entries = p.entries;
  // Sums over the first pairs are the same for columns that differ in higher bits only, which the
  // compiler sees.
  float sum[kPairs][4] = {};
  WLIB_UNROLL
  for (int quarter = 0; quarter < kPairs / kQuarter; ++quarter) {
    uint32_t a[kQuarter / 2][4];
    load_quarter<kTransposed>(p, quarter, a);
    WLIB_UNROLL
    for (int i = 0; i < kQuarter / 2; ++i) {
      const int pair = quarter * kQuarter + 2 * i;
      WLIB_UNROLL
      for (int column = 0; column < kPairs; ++column)
        multiply_add<kHalf>(
            sum[column], a[i],
            entries.word[is_opposite(pair, column) + 2 * is_opposite(pair + 1, column)]);
    }
  }
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) {
    first[i] = sum[i / 2][i % 2];
    second[i] = sum[i / 2][2 + i % 2];
  }
  const auto is_finite = [](float x) { return fabsf(x) < INFINITY; };
  return sm90::warp_ballot(!is_finite(first[0]) || !is_finite(second[0])) == 0;
}

template <bool kHalf>
WLIB_DEVICE float2 unpack_pair(uint32_t pair) {
  if constexpr (kHalf) {
    const auto value = [](uint32_t bits) {
      return __half2float(std::bit_cast<__half>(uint16_t(bits)));
    };
    return {value(pair), value(pair >> 16)};
  } else {
    return {sm90::bf16x2_low(pair), sm90::bf16x2_high(pair)};
  }
}

// Both units of the thread without a rotation.
template <bool kHalf, bool kTransposed>
WLIB_DEVICE void unpack_pairs(const PairSide& p, float (&first)[kUnit], float (&second)[kUnit]) {
  WLIB_UNROLL
  for (int quarter = 0; quarter < kPairs / kQuarter; ++quarter) {
    uint32_t a[kQuarter / 2][4];
    load_quarter<kTransposed>(p, quarter, a);
    WLIB_UNROLL
    for (int i = 0; i < kQuarter; ++i) {
      const int at = 2 * (quarter * kQuarter + i);
      const float2 x = unpack_pair<kHalf>(a[i / 2][i % 2 * 2]),
                   y = unpack_pair<kHalf>(a[i / 2][i % 2 * 2 + 1]);
      first[at] = x.x, first[at + 1] = x.y;
      second[at] = y.x, second[at + 1] = y.y;
    }
  }
}

// Takes both units of the thread, by whole warps. Returns what all values are still to be
// multiplied with. Rotations of 16 take no more instructions without tensor cores.
template <bool kHalf>
WLIB_DEVICE float take_pairs(const PairSide& p, float (&first)[kUnit], float (&second)[kUnit]) {
  if (p.hadamard >= kUnit && (p.transposed ? rotate_pairs<kHalf, true>(p, first, second)
                                           : rotate_pairs<kHalf, false>(p, first, second)))
    return hadamard_scale(p.hadamard);
  if (p.transposed)
    unpack_pairs<kHalf, true>(p, first, second);
  else
    unpack_pairs<kHalf, false>(p, first, second);
  if (p.hadamard) {
    rotate(p.hadamard, first);
    rotate(p.hadamard, second);
  }
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) {
    sm90::copy_here(first[i]);
    sm90::copy_here(second[i]);
  }
  return 1;
}

}  // namespace wlib::fp4
