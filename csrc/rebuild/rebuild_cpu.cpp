// The specification of wlib::rebuild. Sums run over the rank in order, in float32, or in float64
// for float64 operands; then w0 + scale * sum, and one rounding.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "rebuild/rebuild.h"
#include "torch/cpu_types.h"
#include "wlib/numerics/philox.h"

namespace wlib::rebuild {
namespace {

constexpr int64_t kGrain = 1 << 14;  // multiply-adds that are worth a thread

// Both ways by way of float, but for float64.
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From> || std::is_same_v<From, double>)
    return To(value);
  else
    return To(float(value));
}

// An operand as a dense matrix.
template <class Acc>
std::vector<Acc> dense(const RebuildOperand& m, FloatType type, int64_t rows, int64_t columns) {
  std::vector<Acc> out(rows * columns);
  with_type(type, [&]<class T>(T*) {
    const T* from = static_cast<const T*>(m.data);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j)
        out[i * columns + j] = convert<Acc>(from[i * m.row_stride + j * m.column_stride]);
    }
  });
  return out;
}

template <class Acc>
class LayerRebuilder {
 public:
  LayerRebuilder(const RebuildLayer& l, uint32_t number, Rounding rounding)
      : l_(l), number_(number), rounding_(rounding) {
    switch (l.form) {
      case RebuildForm::kHadamard:
        a2_ = dense<Acc>(l.a2, l.operand_type, l.rows, l.rank2);
        b2_ = dense<Acc>(l.b2, l.operand_type, l.rank2, l.columns);
        [[fallthrough]];
      case RebuildForm::kLowRank:
        a1_ = dense<Acc>(l.a1, l.operand_type, l.rows, l.rank1);
        b1_ = dense<Acc>(l.b1, l.operand_type, l.rank1, l.columns);
        break;
      case RebuildForm::kKron:
        if (l.rank1 == 0 || l.rank2 == 0) break;
        a1_ = dense<Acc>(l.a1, l.operand_type, l.rows / l.rank1, l.columns / l.rank2);
        b1_ = dense<Acc>(l.b1, l.operand_type, l.rank1, l.rank2);
        break;
      case RebuildForm::kBlockAffine:  // the blocks below each other
        b1_ = dense<Acc>(l.b1, l.operand_type, l.rows, l.rank1);
    }
  }

  void run() const {
    const int64_t work = int64_t(l_.columns) * (1 + l_.rank1);
    torch::stable::parallel_for(0, l_.rows, 1 + kGrain / (1 + work),
                                [&](int64_t begin, int64_t end) {
                                  std::vector<Acc> base(l_.columns), sums(l_.columns), more;
                                  for (int64_t row = begin; row < end; ++row) {
                                    load(row, base);
                                    sum(row, base, sums, more);
                                    store(row, base, sums);
                                  }
                                });
  }

 private:
  void load(int64_t row, std::vector<Acc>& base) const {
    if (!l_.w0) return;
    with_type(l_.w0_type, [&]<class T>(T*) {
      const T* from = static_cast<const T*>(l_.w0) + row * l_.columns;
      for (int64_t j = 0; j < l_.columns; ++j) base[j] = convert<Acc>(from[j]);
    });
  }

  void multiply(const std::vector<Acc>& a, const std::vector<Acc>& b, int64_t rank, int64_t row,
                std::vector<Acc>& sums) const {
    sums.assign(l_.columns, 0);
    for (int64_t k = 0; k < rank; ++k) {
      const Acc factor = a[row * rank + k];
      const Acc* from = &b[k * l_.columns];
      for (int64_t j = 0; j < l_.columns; ++j) sums[j] += factor * from[j];
    }
  }

  void sum(int64_t row, const std::vector<Acc>& base, std::vector<Acc>& sums,
           std::vector<Acc>& more) const {
    switch (l_.form) {
      case RebuildForm::kLowRank: return multiply(a1_, b1_, l_.rank1, row, sums);
      case RebuildForm::kHadamard:
        multiply(a1_, b1_, l_.rank1, row, sums);
        multiply(a2_, b2_, l_.rank2, row, more);
        for (int64_t j = 0; j < l_.columns; ++j) sums[j] *= more[j];
        return;
      case RebuildForm::kKron: {
        const Acc* a = &a1_[row / l_.rank1 * (l_.columns / l_.rank2)];
        const Acc* b = &b1_[row % l_.rank1 * l_.rank2];
        for (int64_t j = 0; j < l_.columns; ++j) sums[j] = a[j / l_.rank2] * b[j % l_.rank2];
        return;
      }
      case RebuildForm::kBlockAffine: {
        const int64_t r = l_.rank1;
        const Acc *block = &b1_[row / r * r * r], *bias = &b1_[row * r];
        for (int64_t first = 0; first < l_.columns; first += r) {
          std::copy_n(bias, r, &sums[first]);
          for (int64_t k = 0; k < r; ++k) {
            for (int64_t j = 0; j < r; ++j) sums[first + j] += base[first + k] * block[k * r + j];
          }
        }
      }
    }
  }

  void store(int64_t row, const std::vector<Acc>& base, const std::vector<Acc>& sums) const {
    const Acc scale = Acc(l_.scale);
    const auto value = [&](int64_t j) { return (l_.w0 ? base[j] : Acc(0)) + scale * sums[j]; };
    with_type(l_.out_type, [&]<class T>(T*) {
      T* to = static_cast<T*>(l_.out) + row * l_.columns;
      for (int64_t j = 0; j < l_.columns; ++j) to[j] = convert<T>(value(j));
    });
    if (!rounding_.stochastic) return;
    // Elements are counted row by row, each row padded to whole blocks; the rows of block_affine
    // are those of its blocks.
    const int64_t width = l_.form == RebuildForm::kBlockAffine ? l_.rank1 : l_.columns;
    const int64_t blocks = (width + kRoundingBlock - 1) / kRoundingBlock;
    const int64_t first_row = row * (width ? l_.columns / width : 0);
    auto* to = static_cast<uint16_t*>(l_.out) + row * l_.columns;
    for (int64_t j = 0; j < l_.columns; ++j) {
      const int64_t in_row = j % width;
      const uint64_t block = (first_row + j / width) * blocks + in_row / kRoundingBlock;
      const Draw d = draw(rounding_.seed, number_, kRoundingBasis, block);
      to[j] = round_stochastic_bf16(float(value(j)), rounding_bits(d, in_row % kRoundingBlock));
    }
  }

  const RebuildLayer& l_;
  uint32_t number_;
  Rounding rounding_;
  std::vector<Acc> a1_, b1_, a2_, b2_;
};

}  // namespace

void rebuild_cpu(std::span<const RebuildLayer> layers, Rounding rounding) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const RebuildLayer& l = layers[i];
    if (l.operand_type == FloatType::kFloat64)
      LayerRebuilder<double>(l, uint32_t(i), rounding).run();
    else
      LayerRebuilder<float>(l, uint32_t(i), rounding).run();
  }
}

}  // namespace wlib::rebuild
