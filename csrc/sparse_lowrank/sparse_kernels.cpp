#include "sparse_lowrank/sparse_kernels.h"

#include <cmath>

namespace wlib::sparse_lowrank::WLIB_ISA {
namespace {

// Written with fma, so that every instruction set gives the same bits.
template <class T>
void multiply(const T* values, const int16_t* positions, int64_t count, bool transposed, const T* x,
              T* sums) {
  for (int64_t i = 0; i < count; ++i) {
    const int row = row_of(positions[i]), column = column_of(positions[i]);
    const T* from = x + (transposed ? row : column) * kTokenBlock;
    T* to = sums + (transposed ? column : row) * kTokenBlock;
    const T value = values[i];
    for (int t = 0; t < kTokenBlock; ++t) to[t] = std::fma(value, from[t], to[t]);
  }
}

// Products of one block add up in four chains, the blocks in float64.
template <class T>
void sample(const int16_t* positions, int64_t count, const T* dy, const T* x, double* sums) {
  constexpr int kChains = 4;
  for (int64_t i = 0; i < count; ++i) {
    const T* left = dy + row_of(positions[i]) * kTokenBlock;
    const T* right = x + column_of(positions[i]) * kTokenBlock;
    T chain[kChains] = {};
    for (int t = 0; t < kTokenBlock; t += kChains) {
      for (int c = 0; c < kChains; ++c) chain[c] = std::fma(left[t + c], right[t + c], chain[c]);
    }
    sums[i] += (chain[0] + chain[1]) + (chain[2] + chain[3]);
  }
}

}  // namespace

extern const SparseKernels<float> kFloatSparseKernels;
extern const SparseKernels<double> kDoubleSparseKernels;
const SparseKernels<float> kFloatSparseKernels = {multiply<float>, sample<float>};
const SparseKernels<double> kDoubleSparseKernels = {multiply<double>, sample<double>};

}  // namespace wlib::sparse_lowrank::WLIB_ISA
