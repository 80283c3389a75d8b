// The specification of wlib::atoms_linear, on torch's matmul. One set of coefficients: the weight
// is made first. Coefficients per token: each atom's product is scaled and added up.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "atoms/cpu.h"
#include "atoms/linear.h"
#include "atoms/types.h"
#include "torch/empty.h"
#include "torch/matmul.h"

namespace wlib::atoms {
namespace {

using torch::headeronly::ScalarType;

template <class Acc>
class Linear {
 public:
  Linear(const LinearParams& p, const Tensor& like)
      : p_(p), like_(like), x_(widened(p.x, p.tokens)), sums_(matrix(p.tokens, p.rows)) {}

  void run() {
    if (p_.coef_per_token)
      add_products();
    else
      multiply(weight(), sums_);
    torch::stable::parallel_for(0, p_.tokens, 1, [&](int64_t begin, int64_t end) {
      std::vector<Acc> bias(p_.bias ? p_.rows : 0);
      load(p_.bias, p_.type, 0, int64_t(bias.size()), bias.data());
      for (int64_t m = begin; m < end; ++m) {
        Acc* sums = data(sums_) + m * p_.rows;
        for (int64_t n = 0; n < int64_t(bias.size()); ++n) sums[n] += bias[n];
        store(sums, p_.out, p_.type, m * p_.rows, p_.rows);
      }
    });
  }

 private:
  static constexpr FloatType kType =
      sizeof(Acc) == sizeof(double) ? FloatType::kFloat64 : FloatType::kFloat32;

  Tensor matrix(int64_t rows, int64_t columns) const {
    const int64_t shape[] = {rows, columns};
    return new_empty(like_, shape,
                     kType == FloatType::kFloat64 ? ScalarType::Double : ScalarType::Float);
  }
  static Acc* data(const Tensor& t) { return static_cast<Acc*>(t.mutable_data_ptr()); }

  // Rows of p.type, from number `first` on.
  Tensor widened(const void* from, int64_t rows, int64_t first = 0) const {
    const Tensor to = matrix(rows, p_.columns);
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        load(from, p_.type, (first + i) * p_.columns, p_.columns, data(to) + i * p_.columns);
    });
    return to;
  }
  // to = x weight^T
  void multiply(const Tensor& weight, Tensor& to) const {
    matmul(x_, torch::stable::transpose(weight, 0, 1), to);
  }

  // base + sum_s coef[s] atoms[s]
  Tensor weight() const {
    const Tensor made = matrix(p_.rows, p_.columns);
    reconstruct_cpu(WeightSum(p_, made.mutable_data_ptr(), kType).params);
    return made;
  }

  // sums[m] = base x[m] + sum_s coef[m, s] (atoms[s] x[m])
  void add_products() {
    if (p_.base)
      multiply(widened(p_.base, p_.rows), sums_);
    else
      std::fill_n(data(sums_), p_.tokens * p_.rows, Acc(0));
    Tensor product = matrix(p_.tokens, p_.rows);
    for (int64_t s = 0; s < p_.num_atoms; ++s) {
      multiply(widened(p_.atoms, p_.rows, s * p_.rows), product);
      torch::stable::parallel_for(0, p_.tokens, 1, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
          const Acc c = static_cast<const Acc*>(p_.coef)[m * p_.num_atoms + s];
          const Acc* add = data(product) + m * p_.rows;
          Acc* sums = data(sums_) + m * p_.rows;
          for (int64_t n = 0; n < p_.rows; ++n) sums[n] += c * add[n];
        }
      });
    }
  }

  const LinearParams& p_;
  const Tensor& like_;
  Tensor x_, sums_;  // [tokens, columns], [tokens, rows]
};

}  // namespace

void linear_cpu(const LinearParams& p, const Tensor& like) {
  if (p.type == FloatType::kFloat64)
    Linear<double>(p, like).run();
  else
    Linear<float>(p, like).run();
}

}  // namespace wlib::atoms
