// The specification of wlib::prng_expand and of its gradient.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "rebuild/prng.h"

namespace wlib::rebuild {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kGrain = 1 << 12;  // numbers that are worth a thread

int block_elements(Distribution d) {
  return d == Distribution::kSign ? kSignElements : kBlockElements;
}

// The elements of `block` of basis i.
void basis_values(const PrngParams& p, int32_t i, int64_t block, float* values) {
  if (p.distribution == Distribution::kSign) {
    const Draw d = draw(p.seed, p.tensor, uint32_t(i) / kSignBases, uint64_t(block));
    for (int j = 0; j < kSignElements; ++j) values[j] = sign_value(d.word[i % kSignBases], j, 1.0f);
    return;
  }
  const Draw d = draw(p.seed, p.tensor, uint32_t(i), uint64_t(block));
  for (int j = 0; j < kBlockElements; j += 2) {
    const NormalPair pair =
        p.distribution == Distribution::kNormal
            ? normal_values(d.word[j], d.word[j + 1])
            : NormalPair{{uniform_value(d.word[j]), uniform_value(d.word[j + 1])}};
    values[j] = pair.value[0];
    values[j + 1] = pair.value[1];
  }
}

template <class Acc, class T>
void expand(const PrngParams& p) {
  const auto* coef = static_cast<const Acc*>(p.coef);
  auto* out = static_cast<T*>(p.values);
  const int size = block_elements(p.distribution);
  const int64_t blocks = (p.elements + size - 1) / size;
  torch::stable::parallel_for(
      0, blocks, 1 + kGrain / (1 + size * int64_t(p.count)), [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          Acc sums[kSignElements] = {};
          float values[kSignElements];
          for (int32_t i = 0; i < p.count; ++i) {
            basis_values(p, i, block, values);
            for (int j = 0; j < size; ++j) sums[j] = std::fma(coef[i], Acc(values[j]), sums[j]);
          }
          const int64_t count = std::min<int64_t>(size, p.elements - block * size);
          for (int64_t j = 0; j < count; ++j) out[block * size + j] = T(sums[j]);
        }
      });
}

template <class Acc, class T>
void project(const PrngParams& p) {
  auto* coef = static_cast<Acc*>(p.coef);
  const auto* from = static_cast<const T*>(p.values);
  const int size = block_elements(p.distribution);
  torch::stable::parallel_for(
      0, p.count, 1 + kGrain / (1 + p.elements), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          double sum = 0;
          float values[kSignElements];
          for (int64_t first = 0; first < p.elements; first += size) {
            basis_values(p, int32_t(i), first / size, values);
            const int64_t count = std::min<int64_t>(size, p.elements - first);
            for (int64_t j = 0; j < count; ++j) sum += double(from[first + j]) * values[j];
          }
          coef[i] = Acc(sum);
        }
      });
}

}  // namespace

void prng_expand_cpu(const PrngParams& p) {
  switch (p.value_type) {
    case FloatType::kFloat32: return expand<float, float>(p);
    case FloatType::kBFloat16: return expand<float, BFloat16>(p);
    case FloatType::kFloat16: return expand<float, Half>(p);
    case FloatType::kFloat64: return expand<double, double>(p);
  }
}
void prng_project_cpu(const PrngParams& p) {
  switch (p.value_type) {
    case FloatType::kFloat32: return project<float, float>(p);
    case FloatType::kBFloat16: return project<float, BFloat16>(p);
    case FloatType::kFloat16: return project<float, Half>(p);
    case FloatType::kFloat64: return project<double, double>(p);
  }
}

}  // namespace wlib::rebuild
