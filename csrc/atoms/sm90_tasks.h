// From the parameters of the ops on shared atoms to those of their kernels; host code that the
// launchers and the simulator share.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "atoms/sm90_backward.h"
#include "atoms/sm90_reconstruct.h"

namespace wlib::atoms {

constexpr int64_t kMaxSmem = 227 * 1024;

inline ReconstructTask make_task(const ReconstructParams& p) {
  const bool rows_matter = p.coef_per_row || p.rank > 0;
  const int64_t rows = rows_matter ? p.rows : 1,
                columns = rows_matter ? p.columns : p.rows * p.columns;
  return {{p.atom[0], p.num_atoms, p.rows * p.columns, p.atom_type},
          p.out[0],
          static_cast<const float*>(p.coef),
          p.base,
          p.a,
          p.b,
          p.num_layers,
          p.coef_per_row ? p.rows : 1,
          rows,
          columns,
          p.rank,
          float(p.scale),
          p.base_type,
          p.residual_type,
          p.out_type};
}

inline ChunkGrid chunk_grid(const ReconstructBackwardParams& p) {
  return p.coef_per_row ? ChunkGrid(p.rows, p.columns) : ChunkGrid(1, p.rows * p.columns);
}

inline BackwardTask make_task(const ReconstructBackwardParams& p) {
  const int64_t elements = p.rows * p.columns;
  return {{p.grad, p.num_layers, elements, p.grad_type},
          {p.atoms, p.num_atoms, elements, p.atom_type},
          static_cast<const float*>(p.coef),
          p.grad_atoms,
          p.partials,
          p.coef_per_row ? p.rows : 1,
          chunk_grid(p),
          float(p.scale),
          p.update,
          p.update.factors.as<float>()};
}

inline FinishParams make_finish(const ReconstructBackwardParams& p) {
  const ChunkGrid grid = chunk_grid(p);
  return {p.partials,  static_cast<float*>(p.grad_coef), grid.rows,
          grid.chunks, p.num_layers * p.num_atoms,       p.scale};
}

// Fills tables with tensors in turn; calls run(table) for each that is full and for the last.
// Stops at the first error, which is what run returns unless it is 0.
template <class Table, class F>
auto fill_tables(std::span<const ReconstructParams> tensors, F run) {
  using Error = decltype(run(std::declval<const Table&>()));
  const auto table = std::make_unique<Table>();
  *table = {};
  int pointers = 0;
  int64_t tiles = 0;
  const auto flush = [&] {
    table->tiles = int32_t(tiles);
    const Error error = tiles > 0 ? run(*table) : Error(0);
    table->count = pointers = 0;
    tiles = 0;
    return error;
  };
  for (const ReconstructParams& p : tensors) {
    const int own = int(p.num_atoms + p.num_layers);
    const int64_t own_tiles = ceil_of(p.columns, kSumTile);
    if (table->count == Table::kMaxTensors || pointers + own > Table::kMaxPointers ||
        tiles + own_tiles > int64_t(1) << 30) {
      if (const Error error = flush(); error != Error(0)) return error;
    }
    table->coef = static_cast<const float*>(p.coef);
    table->outputs = int32_t(p.num_layers);
    table->inputs = int32_t(p.num_atoms);
    table->types[table->count] = p.atom_type;
    table->tensors[table->count++] = {p.columns, int32_t(tiles), pointers};
    std::copy_n(p.atom, p.num_atoms, table->pointers + pointers);
    std::copy_n(p.out, p.num_layers, table->pointers + pointers + p.num_atoms);
    pointers += own;
    tiles += own_tiles;
  }
  return flush();
}

}  // namespace wlib::atoms
