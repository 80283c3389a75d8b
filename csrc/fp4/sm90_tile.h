// A tile of 128 x 128 values in shared memory, and what a thread takes from it at a time: 32
// neighbouring values of a row or of a column. A block of either format never leaves a thread, so
// scales and codes come from the functions that the CPU uses; rotations of 64 and 128 meet in the
// four lanes that share a line.
#pragma once

#include <cutlass/fast_math.h>

#include "wlib/numerics/hadamard.h"
#include "wlib/params/fp4.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/float_types.h"
#include "wlib/sm90/sync.h"

namespace wlib::fp4 {

constexpr int kTile = kQuantizeTile;
constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / sm90::kWarpThreads;
// Per SM, which sm_120's shared memory is too small for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kTileCtas = 1;
#else
constexpr int kTileCtas = 2;
#endif

// The mask tells the compiler that no index is negative: quotients are shifts.
WLIB_DEVICE int tile_thread() { return sm90::thread_index() & (kTileThreads - 1); }
WLIB_DEVICE int tile_warp() { return tile_thread() / sm90::kWarpThreads; }
WLIB_DEVICE int tile_lane() { return tile_thread() % sm90::kWarpThreads; }

constexpr int kUnit = 32;                           // values of a thread
constexpr int kUnits = kTile / kUnit;               // in a line
constexpr int kLinesAtOnce = 8;                     // of a warp
constexpr int kWarpLines = kTile / kTileWarps;      // neighbouring lines of a warp
constexpr int kRounds = kWarpLines / kLinesAtOnce;  // of a warp

constexpr int kPairs = kUnit / 2;     // of 16-bit values, one in each half of a word
constexpr int kQuarter = kPairs / 4;  // of them are loaded at a time
struct alignas(16) PairQuarter {
  uint32_t pair[kQuarter];
};
// Sign bits of what is flipped before a rotation.
struct UnitFlips {
  PairQuarter quarter[kPairs / kQuarter];
};

// As floats. The pitch and the gaps between units, in either direction, put into different banks
// what lanes take at once: 16 bytes of each of four units of two lines along rows, a float of each
// of four units of eight lines along columns.
struct FloatTile {
  static constexpr int kColumnGap = 4, kRowGap = 8;
  static constexpr int kPitch = kTile + 4 * kColumnGap;
  alignas(16) float values[kTile * kPitch + (kUnits - 1) * kRowGap];

  WLIB_DEVICE float* at(int row, int column) {
    return values + row * kPitch + row / kUnit * kRowGap + column + column / kUnit * kColumnGap;
  }
};

// Where a tile begins.
struct alignas(8) Corner {
  int row, column;
};
// Of the tiles of a matrix, row by row, `tiles` in each.
WLIB_DEVICE Corner corner_of(int tile, const cutlass::FastDivmod& tiles) {
  int row, column;
  tiles(row, column, tile);
  return {row * kTile, column * kTile};
}

// One of the units of a thread: `line` is a row of the tile or, transposed, a column. The lanes of
// a quad have the four units of a line.
struct Unit {
  int line, block;
  WLIB_DEVICE explicit Unit(int round)
      : line(first_line() + round * kLinesAtOnce + tile_lane() / kUnits),
        block(tile_lane() % kUnits) {}
  WLIB_DEVICE static int first_line() {  // of the warp
    return tile_warp() * kWarpLines;
  }
};

// 16 bytes of a row.
template <class T>
struct Run {
  static constexpr int kCount = 16 / sizeof(T);
  T value[kCount];
};

template <int N>
WLIB_DEVICE void store_floats(float* to, const float (&x)[N]) {
  WLIB_UNROLL
  for (int i = 0; i < N; i += 4)
    *reinterpret_cast<float4*>(to + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
}

template <class T>
WLIB_DEVICE void store_run(float* to, uint4 bytes) {
  const auto run = std::bit_cast<Run<T>>(bytes);
  float x[Run<T>::kCount];
  WLIB_UNROLL
  for (int i = 0; i < Run<T>::kCount; ++i) x[i] = sm90::as_float(run.value[i]);
  store_floats(to, x);
}
template <class T>
WLIB_DEVICE void store_run(uint16_t* to, uint4 bytes) {
  *reinterpret_cast<uint4*>(to) = bytes;
}
template <class T>
WLIB_DEVICE void store_value(float* to, T value) {
  *to = sm90::as_float(value);
}
WLIB_DEVICE void store_value(uint16_t* to, uint16_t value) { *to = value; }

// Beyond the matrix: zeros. Plain tiles (sm90_side.h) lie inside of it.
template <class T, bool kPlain = false, class Tile>
WLIB_DEVICE void load_values(const Source& from, Corner corner, Tile& to) {
  constexpr int kCount = Run<T>::kCount, kRuns = kTile / kCount;
  constexpr int kStep = kTileThreads / kRuns;  // rows from one run of a thread to its next
  constexpr int kBatch = 8;                    // loads in flight
  static_assert(kUnit % kStep == 0);           // so that a step's place is known to the compiler
  const T* base = static_cast<const T*>(from.x) + corner.row * from.x_stride + corner.column;
  const int rows = int(from.rows) - corner.row, columns = int(from.columns) - corner.column;
  const bool whole =
      kPlain || ((reinterpret_cast<uintptr_t>(base) | from.x_stride * sizeof(T)) % 16 == 0 &&
                 columns % kCount == 0);
  if (whole) {
    const int row = tile_thread() / kRuns, column = tile_thread() % kRuns * kCount;
    const T* next = base + row * from.x_stride + column;
    const int64_t step = kStep * from.x_stride;
    const int left = column < columns ? rows - row : 0;
    WLIB_UNROLL
    for (int begin = 0; begin < kTile; begin += kBatch * kStep) {
      uint4 run[kBatch] = {};
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (kPlain || begin + i * kStep < left) run[i] = *reinterpret_cast<const uint4*>(next);
        next += step;
      }
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i)
        store_run<T>(to.at(begin + i * kStep, column) + row * Tile::kPitch, run[i]);
    }
  } else {
    for (int i = tile_thread(); i < kTile * kTile; i += kTileThreads) {
      const int row = i / kTile, column = i % kTile;
      T value{};
      if (row < rows && column < columns) value = base[row * from.x_stride + column];
      store_value(to.at(row, column), value);
    }
  }
}

WLIB_DEVICE void read_unit(FloatTile& tile, Unit unit, bool transposed, float (&x)[kUnit]) {
  if (transposed) {
    const float* from = tile.at(unit.block * kUnit, unit.line);
    WLIB_UNROLL
    for (int i = 0; i < kUnit; ++i) x[i] = from[i * FloatTile::kPitch];
  } else {
    const float* from = tile.at(unit.line, unit.block * kUnit);
    WLIB_UNROLL
    for (int i = 0; i < kUnit; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  }
}

WLIB_DEVICE void flip_signs(const UnitFlips& flips, float (&x)[kUnit]) {
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) {
    const uint32_t pair = flips.quarter[i / 2 / kQuarter].pair[i / 2 % kQuarter];
    const uint32_t flip = (i % 2 ? pair : pair << 16) & 0x80000000u;
    x[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(x[i]) ^ flip);
  }
}

// A stage of the butterfly between lanes: a + b in the lower one, a - b in the upper one.
WLIB_DEVICE void hadamard_stage_across(int lanes, float (&x)[kUnit]) {
  const float own = tile_lane() & lanes ? -1.0f : 1.0f;
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) x[i] = fmaf(own, x[i], sm90::warp_shuffle_xor(x[i], lanes));
}

// The CPU's sums, by whole warps. Blocks of a rotation are inside of the matrix or outside of it as
// a whole.
WLIB_DEVICE void rotate(int size, float (&x)[kUnit]) {
  hadamard_stage<1>(x);
  hadamard_stage<2>(x);
  hadamard_stage<4>(x);
  hadamard_stage<8>(x);
  if (size >= 32) hadamard_stage<16>(x);
  if (size >= 64) hadamard_stage_across(1, x);
  if (size >= 128) hadamard_stage_across(2, x);
  const float scale = hadamard_scale(size);
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) x[i] = fmaf(x[i], scale, 0.0f);
}

}  // namespace wlib::fp4
