// Sums of shared atoms, and of lists of tensors: every atom is read once, every weight written
// once. A CTA takes tiles of 1024 neighbouring elements of a row in turn. A thread owns a run of
// eight: it brings them, of all atoms, to its own place in shared memory, and sums eight layers at
// a time. No thread reads what another one brought but the coefficients.
#pragma once

#include <cmath>

#include "atoms/sm90_sums.h"

namespace wlib::atoms {

using sm90::kRun;

constexpr int kSumThreads = 128, kSumTile = kSumThreads * kRun;

// Shared memory: the coefficients, then [atoms][2][threads] halves of runs.
WLIB_HOST_DEVICE constexpr int64_t sum_smem_bytes(int64_t layers, int64_t atoms) {
  return 4 * atoms * (ceil_of(layers, kGroup) * kGroup + kSumTile);
}

// One tile, as a thread sees it.
struct SumTile {
  int64_t row, column, offset, count;  // of the thread's run, `count` may be beyond kRun or below 1
  WLIB_DEVICE SumTile(int64_t row, int64_t tile, int64_t columns)
      : row(row),
        column(tile * kSumTile + sm90::thread_index() * kRun),
        offset(row * columns + column),
        count(columns - column) {}
};

// Brings the thread's run of all atoms to shared memory.
template <class Atoms>
WLIB_DEVICE void stage_atoms(const Atoms& atoms, const SumTile& at, Four* staged) {
  for (int64_t first = 0; first < atoms.count; first += kLoadsInFlight) {
    const void* from[kLoadsInFlight];
    int64_t counts[kLoadsInFlight];
    WLIB_UNROLL
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const bool inside = first + i < atoms.count;
      from[i] = advance(atoms.at(inside ? first + i : first), atoms.type, at.offset);
      counts[i] = inside ? at.count : 0;
    }
    float values[kLoadsInFlight][kRun];
    sm90::load_runs(from, atoms.type, counts, values);
    WLIB_UNROLL
    for (int i = 0; i < kLoadsInFlight; ++i) {
      if (first + i >= atoms.count) break;
      const float* v = values[i];
      Four* to = staged + (first + i) * 2 * kSumThreads + sm90::thread_index();
      to[0] = {{v[0], v[1], v[2], v[3]}};
      to[kSumThreads] = {{v[4], v[5], v[6], v[7]}};
    }
  }
}

// The sums over all atoms of a thread's run; finish(k, sums) gets those of output k.
template <bool kResident, class Atoms, class Finish>
WLIB_DEVICE void sum_run(const Coefficients& c, const float* staged, const Atoms& atoms,
                         const SumTile& at, Finish finish) {
  const auto* runs = reinterpret_cast<const Four*>(staged + c.staged_floats());
  const auto read = [&](int64_t s, float(&values)[kRun]) {
    if constexpr (kResident) {
      const Four* from = runs + s * 2 * kSumThreads + sm90::thread_index();
      const Four low = from[0], high = from[kSumThreads];
      WLIB_UNROLL
      for (int i = 0; i < 4; ++i) {
        values[i] = low.value[i];
        values[4 + i] = high.value[i];
      }
    } else {
      sm90::load_values(atoms.at(s), atoms.type, at.offset, at.count, values);
    }
  };
  for (int64_t group = 0; group < c.groups(); ++group) {
    float sums[kGroup][kRun];
    sum_group<kResident>(c, staged, group, read, sums);
    WLIB_UNROLL
    for (int k = 0; k < kGroup; ++k) {
      if (group * kGroup + k < c.outputs) finish(group * kGroup + k, sums[k]);
    }
  }
}

// As ReconstructParams, for the kernel: where nothing depends on the row, all elements are one row.
struct ReconstructTask {
  Arrays atoms;
  void* out;          // [layers, rows, columns] of out_type
  const float* coef;  // [layers, atoms, coef_rows]
  const void *base, *a, *b;
  int64_t layers, coef_rows, rows, columns, rank;
  float scale;
  FloatType base_type, residual_type, out_type;

  WLIB_HOST_DEVICE int64_t tiles_per_row() const { return ceil_of(columns, kSumTile); }
  WLIB_HOST_DEVICE int64_t tiles() const { return rows * tiles_per_row(); }
  WLIB_DEVICE Coefficients coefficients(int64_t row) const {
    return {coef + row, layers, atoms.count, atoms.count * coef_rows, coef_rows};
  }
};

// base + scale * sums + the residual, rounded once.
WLIB_DEVICE void finish_weight(const ReconstructTask& p, const SumTile& at, int64_t layer,
                               const float (&sums)[kRun]) {
  float values[kRun];
  if (p.base)
    sm90::load_values(p.base, p.base_type, layer * p.rows * p.columns + at.offset, at.count,
                      values);
  WLIB_UNROLL
  for (int i = 0; i < kRun; ++i) values[i] = fmaf(p.scale, sums[i], p.base ? values[i] : 0.0f);
  for (int64_t r = 0; r < p.rank; ++r) {
    const float a = sm90::load_float(p.a, p.residual_type, (layer * p.rows + at.row) * p.rank + r);
    float b[kRun];
    sm90::load_values(p.b, p.residual_type, (layer * p.rank + r) * p.columns + at.column, at.count,
                      b);
    WLIB_UNROLL
    for (int i = 0; i < kRun; ++i) values[i] = fmaf(a, b[i], values[i]);
  }
  sm90::store_values(p.out, p.out_type, layer * p.rows * p.columns + at.offset, at.count, values);
}

template <bool kResident>
WLIB_KERNEL_RESIDENT(kSumThreads, 4)
reconstruct_kernel(WLIB_GRID_CONSTANT ReconstructTask p) {
  float* staged = &sm90::dynamic_smem<float>();
  int64_t staged_row = -1;
  for (int64_t tile = sm90::block_index_x(); tile < p.tiles(); tile += sm90::grid_size_x()) {
    const SumTile at(tile / p.tiles_per_row(), tile % p.tiles_per_row(), p.columns);
    const Coefficients c = p.coefficients(p.coef_rows > 1 ? at.row : 0);
    if (kResident && (staged_row < 0 || (p.coef_rows > 1 && staged_row != at.row))) {
      sm90::block_sync();  // the last row's reads
      stage_coefficients(c, staged, kSumThreads);
      sm90::block_sync();
      staged_row = at.row;
    }
    if (at.count <= 0) continue;
    if constexpr (kResident)
      stage_atoms(p.atoms, at, reinterpret_cast<Four*>(staged + c.staged_floats()));
    sum_run<kResident>(c, staged, p.atoms, at, [&](int64_t layer, const float(&sums)[kRun]) {
      finish_weight(p, at, layer, sums);
    });
  }
}

// One tensor of every list: its pointers, inputs first, stand together in the table.
struct CombineTensor {
  int64_t elements;
  int32_t first_tile, first_pointer;
};
// The tensors of a launch, a kernel parameter.
template <int kPointers, int kTensors>
struct CombineTable {
  static constexpr int kMaxPointers = kPointers, kMaxTensors = kTensors;
  const void* pointers[kPointers];
  CombineTensor tensors[kTensors];
  FloatType types[kTensors];
  const float* coef;  // [outputs, inputs]
  int32_t outputs, inputs, count, tiles;
};
// A kernel parameter has at most 32764 bytes.
using FewTensors = CombineTable<96, 8>;
using ManyTensors = CombineTable<3072, 384>;
static_assert(sizeof(ManyTensors) <= 32764);

struct ListedArrays {
  const void* const* pointers;
  int64_t count;
  FloatType type;
  WLIB_DEVICE const void* at(int64_t i) const { return pointers[i]; }
};

// The last tensor whose first tile is not beyond `tile`; empty ones share theirs with the next.
template <class Table>
WLIB_DEVICE int tensor_of(const Table& p, int tile) {
  int low = 0, high = p.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.tensors[middle].first_tile <= tile ? low : high) = middle;
  }
  return low;
}

template <bool kResident, class Table>
WLIB_KERNEL_RESIDENT(kSumThreads, 4)
combine_kernel(WLIB_GRID_CONSTANT Table p) {
  float* staged = &sm90::dynamic_smem<float>();
  const Coefficients c = {p.coef, p.outputs, p.inputs, p.inputs, 1};
  if constexpr (kResident) {
    stage_coefficients(c, staged, kSumThreads);
    sm90::block_sync();
  }
  for (int tile = sm90::block_index_x(); tile < p.tiles; tile += sm90::grid_size_x()) {
    const int which = tensor_of(p, tile);
    const CombineTensor& t = p.tensors[which];
    const FloatType type = p.types[which];
    const SumTile at(0, tile - t.first_tile, t.elements);
    if (at.count <= 0) continue;
    const ListedArrays in = {p.pointers + t.first_pointer, p.inputs, type};
    if constexpr (kResident)
      stage_atoms(in, at, reinterpret_cast<Four*>(staged + c.staged_floats()));
    sum_run<kResident>(c, staged, in, at, [&](int64_t k, const float(&sums)[kRun]) {
      void* out = const_cast<void*>(p.pointers[t.first_pointer + p.inputs + k]);
      sm90::store_values(out, type, at.offset, at.count, sums);
    });
  }
}

}  // namespace wlib::atoms
