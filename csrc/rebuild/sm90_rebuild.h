// Weights from few numbers: w0 + scale * f(operands), many layers in one launch. The base is read
// once and the result written once; a CTA takes a share of the layers' 64 x 128 tiles, keeps the
// base's part of its tile in registers while the operands run through shared memory, and rounds
// once. How the operands are multiplied is the Products of sm90_rebuild_fused.h or
// sm90_rebuild_tensor.h.
#pragma once

#include "wlib/numerics/philox.h"
#include "wlib/params/rebuild.h"
#include "wlib/sm90/runs.h"
#include "wlib/sm90/sync.h"

namespace wlib::rebuild {

using sm90::kRun;

constexpr int kTileRows = 64, kTileColumns = 128, kRebuildThreads = 256;
constexpr int kRowsPerThread = 4;  // of a thread, each with a run of columns

// The layers of a launch, a kernel parameter: nothing to copy, and a CUDA graph keeps it.
template <int kCapacity>
struct RebuildTable {
  RebuildLayer layers[kCapacity];
  int32_t count, tiles;
  Rounding rounding;
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

// Neighbouring tiles lie one below the other: they share the columns of their second factor.
WLIB_DEVICE RebuildTile tile_at(const RebuildView& view, int index) {
  const int columns = view.column_tiles(), rows = view.row_tiles();
  const int batch = index / (rows * columns), column = index / rows % columns;
  return {batch, index % rows * kTileRows, column * kTileColumns,
          int64_t(batch) * view.rows * view.columns};
}

// The first tile of a CTA, which takes a share of neighbouring ones.
WLIB_DEVICE int first_tile(int tiles, int cta) {
  return int(int64_t(tiles) * cta / sm90::grid_size_x());
}

// The last layer whose first tile is not beyond `tile`.
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
    return sm90::load_float(data, type, row * row_stride + column * column_stride);
  }
};

WLIB_DEVICE Factor operand(const RebuildOperand& m, FloatType type, int rows, int columns) {
  return {m.data, type, m.row_stride, m.column_stride, rows, columns};
}

// f(operands) of the thread's part of a tile.
using Sums = float[kRowsPerThread][kRun];

// Rounds a run of row `row` and stores it. Stochastic rounding counts elements row by row of the
// view, each row padded to whole blocks of eight.
template <int kCapacity>
WLIB_DEVICE void finish_run(const RebuildTable<kCapacity>& p, const RebuildLayer& l,
                            const RebuildView& view, int64_t row, int column, int64_t at,
                            const float (&values)[kRun]) {
  uint32_t bits[kRun];
  if (p.rounding.stochastic) {
    const int64_t blocks = (view.columns + kRoundingBlock - 1) / kRoundingBlock;
    const Draw d = draw(p.rounding.seed, uint32_t(l.number), kRoundingBasis,
                        uint64_t(row * blocks + column / kRoundingBlock));
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = round_stochastic_bf16(values[i], rounding_bits(d, i));
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) bits[i] = sm90::from_float(l.out_type, values[i]);
  }
  sm90::store_run(l.out, l.out_type, at, view.columns - column,
                  sm90::whole_runs(l.out, view.columns), bits);
}

template <class Products, int kCapacity>
WLIB_KERNEL_RESIDENT(kRebuildThreads, Products::kResident)
rebuild_kernel(WLIB_GRID_CONSTANT RebuildTable<kCapacity> p) {
  auto& s = sm90::dynamic_smem<typename Products::Smem>();
  const int cta = sm90::block_index_x(), end = first_tile(p.tiles, cta + 1);
  for (int index = first_tile(p.tiles, cta); index < end; ++index) {
    const RebuildLayer& l = p.layers[layer_of(p, index)];
    const RebuildView view(l);
    const RebuildTile tile = tile_at(view, index - l.first_tile);
    const int row = tile.row + Products::row();
    const int column = tile.column + Products::column();
    const FloatType base_type = Products::base_type(l);
    const int64_t first = tile.offset + int64_t(row) * view.columns + column;
    sm90::Run base[kRowsPerThread];
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      const int below = r * Products::kRowStep;
      const bool inside = l.w0 && row + below < view.rows && column < view.columns;
      sm90::load_run(l.w0, base_type, first + int64_t(below) * view.columns,
                     inside ? view.columns - column : 0,
                     inside && sm90::whole_runs(l.w0, view.columns), base[r]);
    }
    Sums sums;
    Products::sum(s, l, view, tile, sums);
    const float scale = float(l.scale);
    WLIB_UNROLL
    for (int r = 0; r < kRowsPerThread; ++r) {
      const int below = r * Products::kRowStep;
      if (row + below >= view.rows || column >= view.columns) continue;
      float values[kRun];
      WLIB_UNROLL
      for (int i = 0; i < kRun; ++i) {
        const float w = l.w0 ? sm90::run_value(base[r], base_type, i) : 0.0f;
        values[i] = fmaf(scale, sums[r][i], w);
      }
      finish_run(p, l, view, int64_t(tile.batch) * view.rows + row + below, column,
                 first + int64_t(below) * view.columns, values);
    }
  }
}

}  // namespace wlib::rebuild
