// Brings the values of every tile into the order of the transposed tile, a CTA per tile: the place
// of each value in a table of the tile, then the table read column by column.
#pragma once

#include "wlib/params/sparse_lowrank.h"
#include "wlib/sm90/runs.h"
#include "wlib/sm90/sync.h"

namespace wlib::sparse_lowrank {

constexpr int kTransposeThreads = kSparseTile;  // a column each

struct SparseTransposeParams {
  TileSparse matrix;
  float* values;       // [count]
  int16_t* positions;  // [count], column * 128 + row, ascending within a tile
};

struct SparseTransposeSmem {
  // 1 + number of the value within its tile, 0 where there is none; rows of words of odd length.
  uint16_t number[kSparseTile][kSparseTile + 2];
  int32_t counts[kSparseTile];
};

WLIB_KERNEL(kTransposeThreads)
sparse_transpose_kernel(WLIB_GRID_CONSTANT SparseTransposeParams p) {
  auto& s = sm90::dynamic_smem<SparseTransposeSmem>();
  const int column = sm90::thread_index();
  for (int64_t tile = sm90::block_index_x(); tile < p.matrix.tiles(); tile += sm90::grid_size_x()) {
    const int64_t begin = p.matrix.offsets[tile];
    const int count = int(p.matrix.offsets[tile + 1] - begin);
    // A column belongs to its thread, but between these two barriers.
    for (int row = 0; row < kSparseTile; ++row) s.number[column][row] = 0;
    sm90::block_sync();
    for (int i = column; i < count; i += kTransposeThreads) {
      const int16_t position = p.matrix.positions[begin + i];
      s.number[column_of(position)][row_of(position)] = uint16_t(i + 1);
    }
    sm90::block_sync();
    int own = 0;
    for (int row = 0; row < kSparseTile; ++row) own += s.number[column][row] != 0;
    s.counts[column] = own;
    sm90::block_sync();
    int64_t to = begin;
    for (int before = 0; before < column; ++before) to += s.counts[before];
    for (int row = 0; row < kSparseTile; ++row) {
      const int number = s.number[column][row];
      if (number == 0) continue;
      p.positions[to] = int16_t(column * kSparseTile + row);
      p.values[to] = sm90::load_float(p.matrix.values, p.matrix.value_type, begin + number - 1);
      ++to;
    }
  }
}

}  // namespace wlib::sparse_lowrank
