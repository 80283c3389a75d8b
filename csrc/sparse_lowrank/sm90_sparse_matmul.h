// Float32 activations times a sparse matrix in tiles (16-bit ones: sm90_sparse_matmul_mma.h).
//
// A CTA makes 128 tokens x 256 outputs. For each tile column of the matrix it keeps the activations
// in shared memory and lets the values of two tiles, one below the other, pass by; a warp owns 16
// rows, a lane four tokens, and their sums stay in registers.
#pragma once

#include "sparse_lowrank/sm90_token_tile.h"
#include "wlib/sm90/sync.h"

namespace wlib::sparse_lowrank {

using sm90::kRun;

constexpr int kWarpRows = 16;
constexpr int kSides = 2;  // tiles of a step
constexpr int kSideThreads = kTileThreads / kSides;
constexpr int kOutRows = kSides * kSparseTile;
constexpr int kStepEntries = 512;  // of each side
constexpr int kThreadEntries = kStepEntries / kSideThreads;
static_assert(kTileThreads / sm90::kWarpThreads * kWarpRows == kOutRows);

// A value, and where the activations of its column lie.
struct alignas(8) SparseEntry {
  float value;
  int32_t where;
};

struct SparseSmem {
  TokenTile x;
  SparseEntry entries[kSides][kStepEntries];
  int32_t starts[kSides][kSparseTile + 1];  // first entry of a row, or of the next that has any
};

// A tile column, and which run of entries of its tiles; `begin` and `count` are of the own side.
struct SparseStep {
  int tile, run, count;
  int64_t begin;
};

WLIB_DEVICE int64_t tile_number(const SparseMatmulParams& p, int row_tile, int column_tile) {
  return p.transposed ? int64_t(column_tile) * p.matrix.column_tiles() + row_tile
                      : int64_t(row_tile) * p.matrix.column_tiles() + column_tile;
}

// Moves on to the next step that has entries on any side; the same one for all threads of the CTA.
WLIB_DEVICE bool next_step(const SparseMatmulParams& p, int row_tile, SparseStep& step) {
  const int rows = p.transposed ? p.matrix.column_tiles() : p.matrix.row_tiles();
  const int columns = p.transposed ? p.matrix.row_tiles() : p.matrix.column_tiles();
  const int own = sm90::thread_index() / kSideThreads;
  for (++step.run; step.tile < columns; ++step.tile, step.run = 0) {
    const int64_t first = int64_t(step.run) * kStepEntries;
    bool any = false;
    step.count = 0;
    WLIB_UNROLL
    for (int side = 0; side < kSides; ++side) {
      if (row_tile + side >= rows) continue;
      const int64_t* offset = p.matrix.offsets + tile_number(p, row_tile + side, step.tile);
      const int64_t left = offset[1] - offset[0] - first;
      any |= left > 0;
      if (side != own) continue;
      step.begin = offset[0] + first;
      step.count = int(left < 0 ? 0 : left < kStepEntries ? left : kStepEntries);
    }
    if (any) return true;
  }
  return false;
}

// The step's activations and the run's entries. Entries ascend by rows: each writes the starts of
// the rows since the one before.
WLIB_DEVICE void store_step(SparseSmem& s, const SparseMatmulParams& p, const TokenRows& x,
                            int64_t token, const SparseStep& step) {
  if (step.run == 0) s.x.copy(x, token, step.tile * kSparseTile);
  const int side = sm90::thread_index() / kSideThreads;
  const int own = sm90::thread_index() % kSideThreads;
  if (step.count == 0 && own <= kSparseTile) s.starts[side][own] = 0;
  WLIB_UNROLL
  for (int i = 0; i < kThreadEntries; ++i) {
    const int index = own + i * kSideThreads;
    if (index >= step.count) continue;
    const int64_t at = step.begin + index;
    const int16_t position = p.matrix.positions[at];
    const int row = row_of(position);
    s.entries[side][index] = {sm90::load_float(p.matrix.values, p.matrix.value_type, at),
                              TokenTile::where(column_of(position))};
    const int next = index ? row_of(p.matrix.positions[at - 1]) + 1 : 0;
    for (int r = next; r <= row; ++r) s.starts[side][r] = index;
    if (index + 1 < step.count) continue;
    for (int r = row + 1; r <= kSparseTile; ++r) s.starts[side][r] = step.count;
  }
}

using SparseSums = float[kWarpRows][kLaneTokens];

// Adds the step's products of the warp's rows, in the order of their columns.
WLIB_DEVICE void add_products(const SparseSmem& s, int side, int row, SparseSums& sums) {
  const int lane = sm90::lane_index();
  int at = s.starts[side][row];
  WLIB_UNROLL
  for (int r = 0; r < kWarpRows; ++r) {
    const int end = s.starts[side][row + r + 1];
    WLIB_UNROLL_TWICE  // four times would take more registers than there are
        for (; at < end; ++at) {
      const SparseEntry entry = s.entries[side][at];
      const auto x = s.x.chunk[entry.where ^ lane];
      WLIB_UNROLL
      for (int t = 0; t < kLaneTokens; ++t) sums[r][t] = fmaf(entry.value, x.token[t], sums[r][t]);
    }
  }
}

// Adds bias and base to a lane's sums, rounds and stores them.
WLIB_DEVICE void finish_rows(const SparseMatmulParams& p, int rows, int64_t token, int row,
                             const SparseSums& sums) {
  WLIB_UNROLL
  for (int t = 0; t < kLaneTokens; ++t) {
    WLIB_UNROLL
    for (int first = 0; first < kWarpRows; first += kRun) {
      const int count = rows - row - first;
      if (token + t >= p.tokens || count <= 0) continue;
      const int64_t at = (token + t) * rows + row + first;
      sm90::Run base{}, bias{};
      if (p.base)
        sm90::load_run(p.base, FloatType::kFloat32, at, count, sm90::whole_runs(p.base, rows),
                       base);
      if (p.bias)
        sm90::load_run(p.bias, FloatType::kFloat32, row + first, count,
                       sm90::whole_runs(p.bias, rows), bias);
      uint32_t bits[kRun];
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) {
        float value = sums[first + i][t];
        if (p.bias) value += sm90::run_value(bias, FloatType::kFloat32, i);
        if (p.base) value += sm90::run_value(base, FloatType::kFloat32, i);
        bits[i] = sm90::from_float(FloatType::kFloat32, value);
      }
      sm90::store_run(p.out, FloatType::kFloat32, at, count, sm90::whole_runs(p.out, rows), bits);
    }
  }
}

WLIB_KERNEL(kTileThreads)
sparse_matmul_kernel(WLIB_GRID_CONSTANT SparseMatmulParams p) {
  auto& s = sm90::dynamic_smem<SparseSmem>();
  const int rows = p.transposed ? p.matrix.columns : p.matrix.rows;
  const TokenRows x{p.x, p.x_stride, p.tokens, p.transposed ? p.matrix.rows : p.matrix.columns};
  const int row_blocks = (rows + kOutRows - 1) / kOutRows;
  const int64_t items = (p.tokens + kTileTokens - 1) / kTileTokens * row_blocks;
  const int side = sm90::warp_index() * kWarpRows / kSparseTile;
  const int row = sm90::warp_index() * kWarpRows % kSparseTile;
  for (int64_t item = sm90::block_index_x(); item < items; item += sm90::grid_size_x()) {
    const int block = int(item % row_blocks);
    const int64_t token = item / row_blocks * kTileTokens;
    SparseSums sums = {};
    SparseStep step{0, -1, 0, 0};
    while (next_step(p, block * kSides, step)) {
      sm90::block_sync();  // the last step's reads
      store_step(s, p, x, token, step);
      sm90::block_sync();
      add_products(s, side, row, sums);
    }
    finish_rows(p, rows, token + sm90::lane_index() * kLaneTokens,
                block * kOutRows + side * kSparseTile + row, sums);
  }
}

}  // namespace wlib::sparse_lowrank
