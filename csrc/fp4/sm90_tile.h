// A tile of 128 x 128 values in shared memory, and what a thread takes from it at a time: 32
// neighbouring values of a row or of a column, rotated. A block of either format never leaves a
// thread, so scales and codes come from the functions that the CPU uses; rotations of 64 and 128
// meet in the four lanes that share a line.
#pragma once

#include "wlib/numerics/hadamard.h"
#include "wlib/params/fp4.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/float_types.h"
#include "wlib/sm90/sync.h"

namespace wlib::fp4 {

constexpr int kTile = kQuantizeTile;
constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / sm90::kWarpThreads;
constexpr int kUnit = 32;                           // values of a thread
constexpr int kUnits = kTile / kUnit;               // in a line
constexpr int kLinesAtOnce = 8;                     // of a warp
constexpr int kWarpLines = kTile / kTileWarps;      // neighbouring lines of a warp
constexpr int kRounds = kWarpLines / kLinesAtOnce;  // of a warp

struct TileSmem {
  // With four floats between rows and eight more every 32 rows, eight lines times four units meet
  // different banks: 16 bytes of each along a row, one float along a column.
  static constexpr int kPitch = kTile + 4, kGap = 8;
  alignas(16) float values[kTile * kPitch + (kUnits - 1) * kGap];
  uint32_t signs[kUnits];  // bit i of word j: value 32 j + i is flipped
  uint32_t maxima[kTileWarps];

  WLIB_DEVICE float* at(int row, int column) {
    return values + row * kPitch + row / kUnit * kGap + column;
  }
};

// Where a tile begins.
struct Corner {
  int64_t row, column;
  WLIB_DEVICE Corner(int64_t tile, int64_t tiles_along_row)
      : row(tile / tiles_along_row * kTile), column(tile % tiles_along_row * kTile) {}
};

// One of the units of a thread: `line` is a row of the tile or, transposed, a column.
struct Unit {
  int line, block;
  WLIB_DEVICE explicit Unit(int round)
      : line(sm90::thread_index() / sm90::kWarpThreads * kWarpLines + round * kLinesAtOnce +
             sm90::lane_index() % kLinesAtOnce),
        block(sm90::lane_index() / kLinesAtOnce) {}
};

using sm90::as_float;

// 16 bytes of a row.
template <class T>
struct alignas(16) Run {
  static constexpr int kCount = 16 / sizeof(T);
  T value[kCount];
};

template <int N>
WLIB_DEVICE void store_floats(float* to, const float (&x)[N]) {
  WLIB_UNROLL
  for (int i = 0; i < N; i += 4)
    *reinterpret_cast<float4*>(to + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
}

// Beyond the matrix: zeros.
template <class T>
WLIB_DEVICE void load_values(const Source& from, Corner corner, TileSmem& s) {
  constexpr int kCount = Run<T>::kCount, kRuns = kTile / kCount;
  constexpr int kStep = kTileThreads / kRuns;  // rows from one run of a thread to its next
  constexpr int kBatch = 8;                    // loads in flight
  static_assert(kUnit % kStep == 0);           // so that a step's place is known to the compiler
  const T* base = static_cast<const T*>(from.x) + corner.row * from.x_stride + corner.column;
  const int64_t rows = from.rows - corner.row, columns = from.columns - corner.column;
  const bool whole = (reinterpret_cast<uintptr_t>(base) | from.x_stride * sizeof(T)) % 16 == 0 &&
                     columns % kCount == 0;
  if (whole) {
    const int row = sm90::thread_index() / kRuns, column = sm90::thread_index() % kRuns * kCount;
    const T* first = base + row * from.x_stride + column;
    const int64_t left = column < columns ? rows - row : 0;
    WLIB_UNROLL
    for (int begin = 0; begin < kTile; begin += kBatch * kStep) {
      Run<T> run[kBatch];
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int below = begin + i * kStep;
        run[i] = Run<T>{};
        if (below < left) run[i] = *reinterpret_cast<const Run<T>*>(first + below * from.x_stride);
      }
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        float x[kCount];
        WLIB_UNROLL
        for (int j = 0; j < kCount; ++j) x[j] = as_float(run[i].value[j]);
        store_floats(s.at(begin + i * kStep, column) + row * TileSmem::kPitch, x);
      }
    }
  } else {
    for (int i = sm90::thread_index(); i < kTile * kTile; i += kTileThreads) {
      const int row = i / kTile, column = i % kTile;
      const bool inside = row < rows && column < columns;
      *s.at(row, column) = inside ? as_float(base[row * from.x_stride + column]) : 0.0f;
    }
  }
}

// 0x80 in the bytes of the negative ones among four codes in the lower half of a word: asked for a
// sign, PRMT repeats it, and 0x80 becomes 0xff.
WLIB_DEVICE uint32_t sign_bytes(uint32_t codes) {
  return sm90::permute_bytes(0x80808080u, 0x80808080u, codes & 0x8888u) << 7 & 0x80808080u;
}

// The values of four codes in the lower half of a word: PRMT looks up the halves of their BF16.
WLIB_DEVICE void expand_codes(uint32_t codes, float (&x)[4]) {
  const uint32_t magnitudes = codes & 0x7777u;
  const uint32_t low = sm90::permute_bytes(0xc0800000u, 0xc0804000u, magnitudes);
  const uint32_t high =
      sm90::permute_bytes(0x3f3f3f00u, 0x40404040u, magnitudes) | sign_bytes(codes);
  WLIB_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const uint32_t pair = sm90::permute_bytes(low, high, i == 0 ? 0x5140u : 0x7362u);
    x[i] = std::bit_cast<float>(pair << 16);
    x[i + 1] = std::bit_cast<float>(pair & 0xffff0000u);
  }
}

// Eight bytes, which may lie anywhere.
WLIB_DEVICE uint2 load_codes(const uint8_t* from, bool aligned) {
  if (aligned) return *reinterpret_cast<const uint2*>(from);
  uint2 codes{};
  for (int i = 0; i < 4; ++i) {
    codes.x |= uint32_t(from[i]) << 8 * i;
    codes.y |= uint32_t(from[4 + i]) << 8 * i;
  }
  return codes;
}

// Packed values: code * scale, and times the global scale if there is one. A thread takes half a
// block of mxfp4 or a block of nvfp4 of every 32nd row.
WLIB_DEVICE void load_packed(const Source& from, Corner corner, TileSmem& s) {
  constexpr int kRun = 16, kRuns = kTile / kRun, kStep = kTileThreads / kRuns;
  static_assert(kStep == kUnit);
  const Packed& packed = from.packed;
  const bool nv = packed.global_scale;
  const bool aligned = reinterpret_cast<uintptr_t>(packed.codes) % 8 == 0;
  const float global_scale = nv ? *packed.global_scale : 1.0f;
  const int row = sm90::thread_index() / kRuns, column = sm90::thread_index() % kRuns * kRun;
  const int64_t left = corner.column + column < from.columns ? from.rows - corner.row - row : 0;
  const int64_t at = (corner.row + row) * from.columns + corner.column + column;
  uint2 codes[kUnits];
  uint8_t scales[kUnits];
  WLIB_UNROLL
  for (int i = 0; i < kUnits; ++i) {
    const int64_t first = at + i * kStep * from.columns;
    codes[i] = uint2{};
    scales[i] = 0;
    if (i * kStep >= left) continue;
    codes[i] = load_codes(packed.codes + first / 2, aligned);
    scales[i] = packed.scales[first / (nv ? kNvBlock : kMxBlock)];
  }
  WLIB_UNROLL
  for (int i = 0; i < kUnits; ++i) {
    const float scale = nv ? e4m3_to_float(scales[i]) : e8m0_to_float(scales[i]);
    float* to = s.at(i * kStep, column) + row * TileSmem::kPitch;
    WLIB_UNROLL
    for (int j = 0; j < kRun; j += 4) {
      float x[4];
      expand_codes((j < 8 ? codes[i].x : codes[i].y) >> j % 8 * 4, x);
      WLIB_UNROLL
      for (float& value : x) value = value * scale * global_scale;
      store_floats(to + j, x);
    }
  }
}

WLIB_DEVICE void load_tile(const Source& from, Corner corner, TileSmem& s) {
  if (!from.x) return load_packed(from, corner, s);
  switch (from.x_type) {
    case FloatType::kFloat32: return load_values<float>(from, corner, s);
    case FloatType::kBFloat16: return load_values<__nv_bfloat16>(from, corner, s);
    default: return load_values<__half>(from, corner, s);
  }
}

// Signs of `size` values, for 128 neighbouring ones; by the first warps.
WLIB_DEVICE void load_signs(const int8_t* signs, int size, TileSmem& s) {
  const int i = sm90::thread_index();
  if (!signs || i >= kTile) return;
  const uint32_t word = sm90::warp_ballot(signs[i % size] < 0);
  if (sm90::lane_index() == 0) s.signs[i / sm90::kWarpThreads] = word;
}

WLIB_DEVICE void read_unit(TileSmem& s, Unit unit, bool transposed, float (&x)[kUnit]) {
  if (transposed) {
    const float* from = s.at(unit.block * kUnit, unit.line);
    WLIB_UNROLL
    for (int i = 0; i < kUnit; ++i) x[i] = from[i * TileSmem::kPitch];
  } else {
    const float* from = s.at(unit.line, unit.block * kUnit);
    WLIB_UNROLL
    for (int i = 0; i < kUnit; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  }
}

WLIB_DEVICE void flip_signs(uint32_t signs, float (&x)[kUnit]) {
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) {
    const uint32_t flip = signs << (kUnit - 1 - i) & 0x80000000u;
    x[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(x[i]) ^ flip);
  }
}

// A stage of the butterfly between lanes: a + b in the lower one, a - b in the upper one.
WLIB_DEVICE void hadamard_stage_across(int lanes, float (&x)[kUnit]) {
  const float own = sm90::lane_index() & lanes ? -1.0f : 1.0f;
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) x[i] = fmaf(own, x[i], sm90::warp_shuffle_xor(x[i], lanes));
}

// By whole warps. Blocks of a rotation are inside of the matrix or outside of it as a whole.
WLIB_DEVICE void rotate(int size, float (&x)[kUnit]) {
  hadamard_stage<1>(x);
  hadamard_stage<2>(x);
  hadamard_stage<4>(x);
  hadamard_stage<8>(x);
  if (size >= 32) hadamard_stage<16>(x);
  if (size >= 64) hadamard_stage_across(kLinesAtOnce, x);
  if (size >= 128) hadamard_stage_across(2 * kLinesAtOnce, x);
  const float scale = hadamard_scale(size);
  WLIB_UNROLL
  for (int i = 0; i < kUnit; ++i) x[i] *= scale;
}

}  // namespace wlib::fp4
