// The inner loops of the CPU kernels, compiled once per instruction set (cmake/Cpu.cmake). They
// work on blocks: kBlock neighbouring elements of each of several arrays, one array after the
// other, padded with zeros.
#pragma once

#include <cstdint>

namespace wlib::atoms {

constexpr int64_t kBlock = 256;

template <class T>
struct BlockKernels {
  // out[l][i] = sum_s weight[l * atoms + s] * values[s][i]
  void (*combine)(const T* weight, int64_t layers, int64_t atoms, const T* values, T* out);
  // sums[l * atoms + s] += sum_i x[l][i] * y[s][i], in float64
  void (*products)(const T* x, int64_t layers, const T* y, int64_t atoms, double* sums);
};

// The best set this processor has.
template <class T>
const BlockKernels<T>& block_kernels();

}  // namespace wlib::atoms
