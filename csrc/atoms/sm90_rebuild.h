// Weights from few numbers: w0 + scale * f(operands), many layers in one launch. The base is read
// once and the result written once; a CTA takes 64 x 128 tiles of the layers in turn, keeps the
// base's part of its tile in registers while the products of the operands run through shared memory
// in steps of 16 ranks, and rounds once.
#pragma once

#include "atoms/sm90_runs.h"
#include "wlib/numerics/philox.h"
#include "wlib/params/rebuild.h"
#include "wlib/sm90/sync.h"

namespace wlib::atoms {

constexpr int kTileRows = 64, kTileColumns = 128, kRebuildThreads = 256;
constexpr int kRowsPerThread = 4;  // of a run of neighbouring columns each
constexpr int kRankStep = 16;
constexpr int kColumnGroups = kTileColumns / kRun;

// The layers of a launch, a kernel parameter: nothing to copy, and a CUDA graph keeps it.
template <int kCapacity>
struct RebuildTable {
  RebuildLayer layers[kCapacity];
  int32_t count, tiles;
  uint32_t first_number;  // of layers[0] in the call, for the keys of stochastic rounding
  Rounding rounding;
};

struct RebuildSmem {
  float a[kRankStep][kTileRows + 4];  // four columns apart in their banks
  // Columns 0-3 of every run, then columns 4-7: neighbouring threads read neighbouring quads.
  float b[kRankStep][kTileColumns];
};

// A layer as the kernel sees it: `batches` matrices one below the other, which for block_affine
// are the rows of blocks, each cut into pieces of a block's width.
struct RebuildView {
  int rows, columns, batches;
  WLIB_HOST_DEVICE explicit RebuildView(const RebuildLayer& l)
      : rows(l.rows), columns(l.columns), batches(1) {
    if (l.form != RebuildForm::kBlockAffine) return;
    rows = l.columns;
    columns = l.rank1;
    batches = l.rows / l.rank1;
  }
  WLIB_HOST_DEVICE int row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  WLIB_HOST_DEVICE int column_tiles() const { return (columns + kTileColumns - 1) / kTileColumns; }
  WLIB_HOST_DEVICE int64_t tiles() const { return int64_t(batches) * row_tiles() * column_tiles(); }
};

struct RebuildTile {
  int batch, row, column;  // first of the tile, in the view
  int64_t offset;          // of the batch's matrix in w0 and out
};

WLIB_DEVICE RebuildTile tile_at(const RebuildView& view, int index) {
  const int columns = view.column_tiles(), rows = view.row_tiles();
  const int batch = index / (rows * columns), row = index / columns % rows;
  return {batch, row * kTileRows, index % columns * kTileColumns,
          int64_t(batch) * view.rows * view.columns};
}

// The last layer whose first tile is not beyond `tile`; layers without tiles share their first tile
// with the next.
template <int kCapacity>
WLIB_DEVICE int layer_of(const RebuildTable<kCapacity>& p, int tile) {
  int low = 0, high = p.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.layers[middle].first_tile <= tile ? low : high) = middle;
  }
  return low;
}

// A matrix in global memory, zero outside of its bounds.
struct Factor {
  const void* data;
  FloatType type;
  int64_t row_stride, column_stride;
  int rows, columns;
  WLIB_DEVICE float at(int row, int column) const {
    if (row >= rows || column >= columns) return 0.0f;
    return load_float(data, type, row * row_stride + column * column_stride);
  }
};

using Sums = float[kRowsPerThread][kRun];

// Adds the product's tile at (row, column) to the thread's sums, ranks in order.
WLIB_DEVICE void multiply(RebuildSmem& s, const Factor& a, const Factor& b, int row, int column,
                          Sums& sums) {
  const int thread = sm90::thread_index();
  const int own_row = thread / kColumnGroups * kRowsPerThread, group = thread % kColumnGroups;
  for (int rank = 0; rank < a.columns; rank += kRankStep) {
    sm90::block_sync();  // the last step's reads
    for (int i = thread; i < kTileRows * kRankStep; i += kRebuildThreads)
      s.a[i % kRankStep][i / kRankStep] = a.at(row + i / kRankStep, rank + i % kRankStep);
    for (int i = thread; i < kTileColumns * kRankStep; i += kRebuildThreads) {
      const int c = i % kTileColumns, k = i / kTileColumns;
      s.b[k][c % kRun / 4 * (kTileColumns / 2) + c / kRun * 4 + c % 4] = b.at(rank + k, column + c);
    }
    sm90::block_sync();
    WLIB_UNROLL
    for (int k = 0; k < kRankStep; ++k) {
      struct alignas(16) Four {
        float value[4];
      };
      const Four left = *reinterpret_cast<const Four*>(&s.a[k][own_row]);
      const Four low = *reinterpret_cast<const Four*>(&s.b[k][group * 4]);
      const Four high = *reinterpret_cast<const Four*>(&s.b[k][kTileColumns / 2 + group * 4]);
      WLIB_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) {
        WLIB_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[r][i] = fmaf(left.value[r], low.value[i], sums[r][i]);
          sums[r][4 + i] = fmaf(left.value[r], high.value[i], sums[r][4 + i]);
        }
      }
    }
  }
}

WLIB_DEVICE Factor operand(const RebuildOperand& m, FloatType type, int rows, int columns) {
  return {m.data, type, m.row_stride, m.column_stride, rows, columns};
}

// f(operands) of the thread's part of a tile.
WLIB_DEVICE void sum_tile(RebuildSmem& s, const RebuildLayer& l, const RebuildView& view,
                          const RebuildTile& tile, Sums& sums) {
  const int row = tile.row + sm90::thread_index() / kColumnGroups * kRowsPerThread;
  const int column = tile.column + sm90::thread_index() % kColumnGroups * kRun;
  const FloatType type = l.operand_type;
  WLIB_UNROLL
  for (auto& own : sums) {
    WLIB_UNROLL
    for (float& sum : own) sum = 0;
  }
  if (l.form == RebuildForm::kKron) {
    const Factor a = operand(l.a1, type, l.rows / l.rank1, l.columns / l.rank2);
    const Factor b = operand(l.b1, type, l.rank1, l.rank2);
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const int block = (column + i) / l.rank2, inner = (column + i) % l.rank2;
      WLIB_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r)
        sums[r][i] = a.at((row + r) / l.rank1, block) * b.at((row + r) % l.rank1, inner);
    }
    return;
  }
  if (l.form == RebuildForm::kBlockAffine) {
    const int64_t first = int64_t(tile.batch) * l.rank1 * l.rank1;
    Factor b = operand(l.b1, type, l.rank1, l.rank1);
    const int pieces = l.columns / l.rank1;  // of a row of w0
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) {
        const bool inside = row + r < view.rows && column + i < view.columns;
        const int64_t at = first + int64_t((row + r) / pieces) * l.rank1 + column + i;
        sums[r][i] = inside ? load_float(b.data, type, at) : 0.0f;
      }
    }
    b.data = static_cast<const char*>(b.data) + first * (type == FloatType::kFloat32 ? 4 : 2);
    const void* base =
        static_cast<const char*>(l.w0) + tile.offset * (l.w0_type == FloatType::kFloat32 ? 4 : 2);
    const Factor a = {base, l.w0_type, l.rank1, 1, view.rows, l.rank1};
    return multiply(s, a, b, tile.row, tile.column, sums);
  }
  multiply(s, operand(l.a1, type, l.rows, l.rank1), operand(l.b1, type, l.rank1, l.columns),
           tile.row, tile.column, sums);
  if (l.form == RebuildForm::kLowRank) return;
  Sums second = {};
  multiply(s, operand(l.a2, type, l.rows, l.rank2), operand(l.b2, type, l.rank2, l.columns),
           tile.row, tile.column, second);
  WLIB_UNROLL
  for (int r = 0; r < kRowsPerThread; ++r) {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) sums[r][i] *= second[r][i];
  }
}

// Rounds a run of row `row` and stores it. Stochastic rounding counts elements row by row of the
// view, each row padded to whole blocks of eight.
template <int kCapacity>
WLIB_DEVICE void finish_run(const RebuildTable<kCapacity>& p, const RebuildLayer& l,
                            const RebuildView& view, uint32_t number, int64_t row, int column,
                            int64_t at, const float (&values)[kRun]) {
  uint32_t bits[kRun];
  if (p.rounding.stochastic) {
    const int64_t blocks = (view.columns + kRoundingBlock - 1) / kRoundingBlock;
    const Draw d = draw(p.rounding.seed, number, kRoundingBasis,
                        uint64_t(row * blocks + column / kRoundingBlock));
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = round_stochastic_bf16(values[i], rounding_bits(d, i));
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = from_float(l.out_type, values[i]);
  }
  store_run(l.out, l.out_type, at, view.columns - column, whole_runs(l.out, view.columns), bits);
}

template <int kCapacity>
WLIB_KERNEL(kRebuildThreads)
rebuild_kernel(WLIB_GRID_CONSTANT RebuildTable<kCapacity> p) {
  auto& s = sm90::dynamic_smem<RebuildSmem>();
  for (int index = sm90::block_index_x(); index < p.tiles; index += sm90::grid_size_x()) {
    const int which = layer_of(p, index);
    const RebuildLayer& l = p.layers[which];
    const RebuildView view(l);
    const RebuildTile tile = tile_at(view, index - l.first_tile);
    const int row = tile.row + sm90::thread_index() / kColumnGroups * kRowsPerThread;
    const int column = tile.column + sm90::thread_index() % kColumnGroups * kRun;
    const int64_t first = tile.offset + int64_t(row) * view.columns + column;
    Run base[kRowsPerThread];
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      const bool inside = l.w0 && row + r < view.rows && column < view.columns;
      load_run(l.w0, l.w0_type, first + int64_t(r) * view.columns,
               inside ? view.columns - column : 0, inside && whole_runs(l.w0, view.columns),
               base[r]);
    }
    Sums sums;
    sum_tile(s, l, view, tile, sums);
    const float scale = float(l.scale);
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      if (row + r >= view.rows || column >= view.columns) continue;
      float values[kRun];
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) {
        const float w = l.w0 ? run_value(base[r], l.w0_type, i) : 0.0f;
        values[i] = fmaf(scale, sums[r][i], w);
      }
      finish_run(p, l, view, p.first_number + which, int64_t(tile.batch) * view.rows + row + r,
                 column, first + int64_t(r) * view.columns, values);
    }
  }
}

}  // namespace wlib::atoms
