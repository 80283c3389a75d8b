// The inner loops of the CPU kernels on sparse matrices, compiled once per instruction set
// (cmake/Cpu.cmake). They work on a tile's entries and on activations column by column, of
// kTokenBlock tokens each.
#pragma once

#include <cstdint>

#include "wlib/params/sparse_lowrank.h"

namespace wlib::sparse_lowrank {

constexpr int kTokenBlock = 16;

template <class T>
struct SparseKernels {
  // sums[row][t] = fma(value, x[column][t], sums[row][t]), entry by entry; `transposed` swaps row
  // and column
  void (*multiply)(const T* values, const int16_t* positions, int64_t count, bool transposed,
                   const T* x, T* sums);
  // sums[entry] += sum_t dy[row][t] x[column][t]
  void (*sample)(const int16_t* positions, int64_t count, const T* dy, const T* x, double* sums);
};

// The best set this processor has.
template <class T>
const SparseKernels<T>& sparse_kernels();

}  // namespace wlib::sparse_lowrank
