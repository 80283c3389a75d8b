// One side of a tile, its rows or its columns, on the way to FP4: which values a thread has,
// rotated, and the largest ones of blocks and lanes.
#pragma once

#include "fp4/sm90_pairs.h"

namespace wlib::fp4 {

struct QuantizeLaunch {
  QuantizeParams side[2];  // of one source
  int sides;
  cutlass::FastDivmod tiles;      // of a row of the source
  cutlass::FastDivmod strips[2];  // of a row of each side: sm90_fold.h
};

// Of a unit's two blocks of nvfp4.
struct BlockPair {
  uint32_t first, second;
};

struct QuantizeSmem {
  union {
    FloatTile floats;
    struct {  // of all sources but float32
      PairTile pairs;
      float4 waiting[kUnit / 4][kTileThreads];  // each thread's own values
    };
  };
  HadamardEntries entries[sm90::kWarpThreads];
  UnitFlips flips[kUnits];
  Corner corner;  // kept here, which saves registers
  uint32_t maxima[kTileWarps];
  uint32_t votes[kTileWarps];
};

// What training in MXFP4 asks for all the time: whole and aligned tiles of BF16 or packed mxfp4,
// rotations by tensor cores, EVEN scales in rows, rounding to nearest, no mask. For that there are
// kernels without a branch for anything else, kPlain.
inline bool is_plain(const QuantizeParams& p) {
  const Source& s = p.source;
  const auto aligned = [](const void* data, int64_t to) {
    return reinterpret_cast<uintptr_t>(data) % to == 0;
  };
  const bool values = s.x && s.x_type == FloatType::kBFloat16 && aligned(s.x, 16) &&
                      s.x_stride * int64_t(bytes_of(s.x_type)) % 16 == 0;
  const bool codes = !s.x && !s.packed.global_scale && aligned(s.packed.codes, 8);
  return (values || codes) && s.rows % kTile == 0 && s.columns % kTile == 0 &&
         p.hadamard >= kUnit && p.rule == ScaleRule::kEven && p.rounding == Rounding::kNearest &&
         !p.swizzle && !p.out.mask;
}

template <bool kPlain>
WLIB_DEVICE bool has_pairs(const Source& s) {
  return kPlain || !s.x || s.x_type != FloatType::kFloat32;
}
template <bool kPlain>
WLIB_DEVICE bool has_halves(const Source& s) {
  return !kPlain && s.x && s.x_type == FloatType::kFloat16;
}

// Where a unit, or a block of it, begins in the quantised matrix.
struct Place {
  int row, column;
  int end;     // of the rows, or 0 where the columns have ended
  int64_t at;  // its first value's number

  WLIB_DEVICE Place(const QuantizeParams& p, int row_, int column_)
      : row(row_),
        column(column_),
        end(column < int(p.columns()) ? int(p.rows()) : 0),
        at(row * p.columns() + column) {}
  WLIB_DEVICE bool inside() const { return row < end; }
  WLIB_DEVICE Place second_block(const QuantizeParams& p) const {
    Place next = *this;
    next.column += kNvBlock;
    next.at += kNvBlock;
    if (next.column >= int(p.columns())) next.end = 0;
    return next;
  }
  WLIB_DEVICE void to_next_round(const QuantizeParams& p) {
    row += kLinesAtOnce;
    at += kLinesAtOnce * p.columns();
  }
};
// Of a thread's first unit.
WLIB_DEVICE Place place_of(const QuantizeParams& p, Corner corner, Unit unit) {
  return {p, (p.transpose ? corner.column : corner.row) + unit.line,
          (p.transpose ? corner.row : corner.column) + unit.block * kUnit};
}
// The same for what `take` gives.
WLIB_DEVICE Place taken_place(const QuantizeParams& p, Corner corner) {
  Unit unit(0);
  if (!p.source.x) unit.line = Unit::first_line() + interleaved_column(tile_lane() / kUnits);
  return place_of(p, corner, unit);
}

// A rotated unit, still to be multiplied with the factor.
struct Taken {
  float x[kUnit], factor = 1;

  WLIB_DEVICE void multiply() {
    WLIB_UNROLL
    for (float& value : x) value *= factor;
  }
  WLIB_DEVICE void clamp(float limit) {
    WLIB_UNROLL
    for (float& value : x) value = fmaxf(fminf(value, limit), -limit);
  }
};

WLIB_DEVICE void take_floats(const QuantizeParams& p, QuantizeSmem& s, int round, Taken& taken) {
  const Unit unit(round);
  read_unit(s.floats, unit, p.transpose, taken.x);
  if (p.signs) flip_signs(s.flips[unit.block], taken.x);
  if (p.hadamard) rotate(p.hadamard, taken.x);
}
template <bool kPlain>
WLIB_DEVICE void take_both(const QuantizeParams& p, QuantizeSmem& s, Taken& first, Taken& second) {
  const PairSide side{s.pairs, s.flips[Unit(0).block], s.entries[tile_lane()], p.transpose,
                      p.hadamard};
  float factor = has_halves<kPlain>(p.source) ? take_pairs<true>(side, first.x, second.x)
                                              : take_pairs<false>(side, first.x, second.x);
  if (!kPlain && !p.source.x && p.source.packed.global_scale)
    factor *= *p.source.packed.global_scale * kPackedNvFactor;
  first.factor = second.factor = factor;
}

// Both units of the thread, by whole warps.
template <bool kPlain>
WLIB_DEVICE void take(const QuantizeParams& p, QuantizeSmem& s, Taken (&units)[kRounds]) {
  static_assert(kRounds == 2);
  if (has_pairs<kPlain>(p.source)) return take_both<kPlain>(p, s, units[0], units[1]);
  take_floats(p, s, 0, units[0]);
  take_floats(p, s, 1, units[1]);
}
// One after the other, where registers do not suffice for both: the second one of pairs waits in
// shared memory.
WLIB_DEVICE void take(const QuantizeParams& p, QuantizeSmem& s, int round, Taken& taken) {
  if (!has_pairs<false>(p.source)) return take_floats(p, s, round, taken);
  float4* waiting = &s.waiting[0][tile_thread()];
  if (round == 0) {
    Taken second;
    take_both<false>(p, s, taken, second);
    WLIB_UNROLL
    for (int i = 0; i < kUnit; i += 4)
      waiting[i / 4 * kTileThreads] =
          float4{second.x[i], second.x[i + 1], second.x[i + 2], second.x[i + 3]};
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kUnit; i += 4) {
      const float4 v = waiting[i / 4 * kTileThreads];
      taken.x[i] = v.x, taken.x[i + 1] = v.y, taken.x[i + 2] = v.z, taken.x[i + 3] = v.w;
    }
  }
}

template <int kFirst>
WLIB_DEVICE void take_block(const float (&x)[kUnit], float (&block)[kNvBlock]) {
  WLIB_UNROLL
  for (int i = 0; i < kNvBlock; ++i) block[i] = x[kFirst + i];
}

// largest_bits of fp4_scale.h, times a positive factor, in an instruction per value.
template <int N>
WLIB_DEVICE uint32_t largest_magnitude(const float (&x)[N], float factor) {
  float largest = 0;
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) largest = sm90::max_or_nan(largest, fabsf(x[i]));
  return std::bit_cast<uint32_t>(largest * factor);
}

WLIB_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Over the lanes whose index differs in the bits from `from` to below `to`.
WLIB_DEVICE uint32_t largest_of_lanes(uint32_t value, int from, int to) {
  for (int lanes = from; lanes < to; lanes *= 2)
    value = larger(value, sm90::warp_shuffle_xor(value, lanes));
  return value;
}

WLIB_DEVICE BlockPair largest_of_blocks(const Taken& taken) {
  float first[kNvBlock], second[kNvBlock];
  take_block<0>(taken.x, first);
  take_block<kNvBlock>(taken.x, second);
  return {largest_magnitude(first, taken.factor), largest_magnitude(second, taken.factor)};
}

// Of 128 neighbouring values; a thread for two of them.
WLIB_DEVICE void load_signs(const int8_t* signs, int size, QuantizeSmem& s) {
  const int pair = tile_thread();
  if (pair >= kUnits * kPairs) return;
  uint32_t flip = 0;
  if (signs) {
    const int8_t* two = signs + (2 * pair & (size - 1));
    flip = (two[0] < 0 ? 0x8000u : 0) | (two[1] < 0 ? 0x80000000u : 0);
  }
  s.flips[pair / kPairs].quarter[pair % kPairs / kQuarter].pair[pair % kQuarter] = flip;
}

template <bool kPlain>
WLIB_DEVICE void load_tile(const Source& from, Corner corner, QuantizeSmem& s) {
  if (!kPlain && !from.x && from.packed.global_scale)
    load_packed<true>(from, corner, s.pairs);
  else if (!from.x)
    load_packed<false, kPlain>(from, corner, s.pairs);
  else if (has_pairs<kPlain>(from))
    load_values<uint16_t, kPlain>(from, corner, s.pairs);
  else
    load_values<float>(from, corner, s.floats);
}

// The CTA's tile of the source, and what rotates it.
template <bool kPlain>
WLIB_DEVICE void fill(const QuantizeParams& p, Corner corner, QuantizeSmem& s) {
  load_tile<kPlain>(p.source, corner, s);
  load_signs(p.signs, p.hadamard, s);
  if (tile_thread() == 0) s.corner = corner;
  if (p.hadamard >= kUnit && tile_thread() < sm90::kWarpThreads)
    s.entries[tile_thread()] = hadamard_entries(p.hadamard, has_halves<kPlain>(p.source));
  sm90::block_sync();
}

WLIB_DEVICE Corner own_corner(const QuantizeLaunch& l) {
  return corner_of(sm90::block_index_x(), l.tiles);
}

// Waits for what the launch before wrote. The next one may start, it waits as well.
WLIB_DEVICE void start() {
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
}

}  // namespace wlib::fp4
