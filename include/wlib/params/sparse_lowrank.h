// What the ops on sparse matrices in tiles hand to their kernels, CPU and CUDA alike. Filled in one
// place, csrc/sparse_lowrank/sparse.cpp, after every argument has been checked.
#pragma once

#include <cstdint>

#include "wlib/params/float_type.h"

namespace wlib::sparse_lowrank {

constexpr int kSparseTile = 128;  // rows and columns of a tile
constexpr int kPositions = kSparseTile * kSparseTile;

// A matrix [rows, columns] with values at few places. Tiles count row by row of tiles; a tile's
// values stand in the order of their positions, row * 128 + column within the tile, which ascend.
struct TileSparse {
  const void* values;        // [count] of value_type
  const int16_t* positions;  // [count]
  const int64_t* offsets;    // [tiles + 1]
  int64_t count;
  int32_t rows, columns;
  FloatType value_type;
  constexpr int row_tiles() const { return (rows + kSparseTile - 1) / kSparseTile; }
  constexpr int column_tiles() const { return (columns + kSparseTile - 1) / kSparseTile; }
  constexpr int64_t tiles() const { return int64_t(row_tiles()) * column_tiles(); }
};
// Within their tile, whatever the position holds.
constexpr int row_of(int16_t position) { return uint16_t(position) / kSparseTile % kSparseTile; }
constexpr int column_of(int16_t position) { return uint16_t(position) % kSparseTile; }

// out[t, n] = sum_k matrix[n, k] x[t, k] + bias[n] + base[t, n]; with `transposed` the matrix's
// transpose. The sum starts from 0 and goes by fused multiply-adds in ascending order of k, in
// float32, or in float64 for float64 x; bias and base follow in this order, then one rounding.
struct SparseMatmulParams {
  TileSparse matrix;
  const void* x;     // [tokens, columns] of type, unit stride along columns
  const void* base;  // [tokens, rows] of type, contiguous, or null
  const void* bias;  // [rows] of type, or null
  void* out;         // [tokens, rows] of type, contiguous
  int64_t tokens, x_stride;
  FloatType type;
  bool transposed;
};

// values[i] = sum_t dy[t, n_i] x[t, k_i], in a fixed order.
struct SampleParams {
  TileSparse matrix;  // without values
  const void* dy;     // [tokens, rows] of type, unit stride along rows
  const void* x;      // [tokens, columns] of type, unit stride along columns
  void* values;       // [count] of matrix.value_type
  float* partials;    // CUDA, if there is more than one run: [splits, count]
  int64_t tokens, dy_stride, x_stride;
  FloatType type;
  // Tokens whose products the CUDA kernels sum in one go; of 16-bit ones so many that about 64
  // pairs of CTAs have some.
  constexpr int64_t run() const {
    if (type == FloatType::kFloat32) return 2048;
    const int64_t blocks =
        int64_t((matrix.row_tiles() + 1) / 2) * ((matrix.column_tiles() + 1) / 2);
    const int64_t splits = (blocks + 63) / blocks;
    const int64_t even = ((tokens + splits - 1) / splits + 63) / 64 * 64;
    return even < 1024 ? 1024 : even;
  }
  constexpr int64_t splits() const { return tokens == 0 ? 1 : (tokens + run() - 1) / run(); }
};

}  // namespace wlib::sparse_lowrank
