#include "atoms/block_kernels.h"

#include <cstring>
#include <type_traits>

namespace wlib::atoms::WLIB_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using Floats = float __attribute__((vector_size(kVectorBytes)));
using Doubles = double __attribute__((vector_size(kVectorBytes)));
template <class T>
using Vector = std::conditional_t<std::is_same_v<T, float>, Floats, Doubles>;
template <class T>
constexpr int kLanesOf = kVectorBytes / sizeof(T);

template <class T>
Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// kLayers x 4 vectors of sums at a time stay in registers.
template <int kLayers, class T>
void combine_layers(const T* weight, int64_t atoms, const T* values, T* out) {
  constexpr int kLanes = kLanesOf<T>, kVectors = 4;
  for (int64_t i = 0; i < kBlock; i += kVectors * kLanes) {
    Vector<T> sum[kLayers][kVectors] = {};
    for (int64_t s = 0; s < atoms; ++s) {
      for (int v = 0; v < kVectors; ++v) {
        const Vector<T> value = load(values + s * kBlock + i + v * kLanes);
        for (int l = 0; l < kLayers; ++l) sum[l][v] += weight[l * atoms + s] * value;
      }
    }
    for (int l = 0; l < kLayers; ++l) std::memcpy(out + l * kBlock + i, sum[l], sizeof sum[l]);
  }
}
template <class T>
void combine(const T* weight, int64_t layers, int64_t atoms, const T* values, T* out) {
  int64_t l = 0;
  for (; l + 2 <= layers; l += 2)
    combine_layers<2>(weight + l * atoms, atoms, values, out + l * kBlock);
  if (l < layers) combine_layers<1>(weight + l * atoms, atoms, values, out + l * kBlock);
}

template <int kLayers, int kAtoms, class T>
void products_tile(const T* x, const T* y, int64_t atoms, double* sums) {
  constexpr int kLanes = kLanesOf<T>;
  Vector<T> sum[kLayers][kAtoms] = {};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    for (int s = 0; s < kAtoms; ++s) {
      const Vector<T> value = load(y + s * kBlock + i);
      for (int l = 0; l < kLayers; ++l) sum[l][s] += load(x + l * kBlock + i) * value;
    }
  }
  for (int l = 0; l < kLayers; ++l) {
    for (int s = 0; s < kAtoms; ++s) {
      for (int lane = 0; lane < kLanes; ++lane) sums[l * atoms + s] += sum[l][s][lane];
    }
  }
}
template <int kLayers, class T>
void products_layers(const T* x, const T* y, int64_t atoms, double* sums) {
  int64_t s = 0;
  for (; s + 4 <= atoms; s += 4) products_tile<kLayers, 4>(x, y + s * kBlock, atoms, sums + s);
  for (; s < atoms; ++s) products_tile<kLayers, 1>(x, y + s * kBlock, atoms, sums + s);
}
template <class T>
void products(const T* x, int64_t layers, const T* y, int64_t atoms, double* sums) {
  int64_t l = 0;
  for (; l + 2 <= layers; l += 2) products_layers<2>(x + l * kBlock, y, atoms, sums + l * atoms);
  if (l < layers) products_layers<1>(x + l * kBlock, y, atoms, sums + l * atoms);
}

}  // namespace

extern const BlockKernels<float> kFloatKernels;
extern const BlockKernels<double> kDoubleKernels;
const BlockKernels<float> kFloatKernels = {combine<float>, products<float>};
const BlockKernels<double> kDoubleKernels = {combine<double>, products<double>};

}  // namespace wlib::atoms::WLIB_ISA
