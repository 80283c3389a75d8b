// The specification of wlib::atoms_linear, on torch's matmul. One set of coefficients: the weight
// is made first. Coefficients per token: each atom's product is scaled and added up.
#include <torch/csrc/stable/ops.h>

#include <bit>
#include <cstring>
#include <vector>

#include "atoms/cpu.h"
#include "atoms/linear.h"
#include "torch/cpu_types.h"
#include "torch/empty.h"
#include "torch/matmul.h"
#include "wlib/layout/int4_tile.h"
#include "wlib/numerics/odd_code.h"

namespace wlib::atoms {
namespace {

using torch::headeronly::ScalarType;

template <class Acc>
class Linear {
 public:
  Linear(const LinearParams& p, const Tensor& like)
      : p_(p), like_(like), x_(widened(p.x, p.type, p.tokens)), sums_(matrix(p.tokens, p.rows)) {}

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

  // Rows of a type, from number `first` on.
  Tensor widened(const void* from, FloatType type, int64_t rows, int64_t first = 0) const {
    const Tensor to = matrix(rows, p_.columns);
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        load(from, type, (first + i) * p_.columns, p_.columns, data(to) + i * p_.columns);
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
      multiply(widened(p_.base, p_.type, p_.rows), sums_);
    else
      std::fill_n(data(sums_), p_.tokens * p_.rows, Acc(0));
    Tensor product = matrix(p_.tokens, p_.rows);
    for (int64_t s = 0; s < p_.num_atoms; ++s) {
      multiply(widened(p_.atoms, p_.atom_type, p_.rows, s * p_.rows), product);
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

// A row block of packed INT4 weights -> up to 64 rows of numbers: code times the scale of the
// group, times that of the row, in float32.
template <class T>
void unpack_rows(const uint8_t* block, int64_t rows, int64_t columns, int groups, T* to) {
  const int4::Layout layout{groups, false};
  const int64_t tiles = int4::ceil_div(columns, int4::kTileColumns);
  float row_scale[int4::kTileRows];
  std::memcpy(row_scale, block + tiles * layout.tile_bytes(), sizeof row_scale);
  for (int64_t tile = 0; tile < tiles; ++tile, block += layout.tile_bytes()) {
    const auto put = [&](int row, int in_tile, int odd) {
      const int64_t column = tile * int4::kTileColumns + in_tile;
      if (row >= rows || column >= columns) return;
      uint16_t bits;
      const int at = in_tile * groups / int4::kTileColumns * int4::kTileRows;
      std::memcpy(&bits, block + layout.scales_offset() + (at + int4::scale_index(row)) * 2, 2);
      const float scale = std::bit_cast<float>(uint32_t(bits) << 16);
      to[row * columns + column] = float((odd - 1) / 2) * scale * row_scale[row];
    };
    for (int byte = 0; byte < int4::kCodeBytes; ++byte) {
      const int4::CodePosition at = int4::code_position(byte);
      put(at.row, at.column, odd_decode_a(block[byte]));
      put(at.row + 8, at.column, odd_decode_b(block[byte]));
    }
  }
}

// Packed INT4 atoms as numbers [num_atoms, rows, columns].
template <class T>
Tensor unpacked(const LinearParams& p, const Tensor& like) {
  const int64_t shape[] = {p.num_atoms, p.rows, p.columns};
  const Tensor atoms =
      new_empty(like, shape, sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
  const int64_t blocks = int4::ceil_div(p.rows, int4::kTileRows);
  const int64_t block_bytes =
      int4::Layout{p.int4_groups, false}.block_bytes(int4::ceil_div(p.columns, int4::kTileColumns));
  T* to = static_cast<T*>(atoms.mutable_data_ptr());
  torch::stable::parallel_for(0, p.num_atoms * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % blocks * int4::kTileRows;
      unpack_rows(static_cast<const uint8_t*>(p.atoms) + i * block_bytes, p.rows - row, p.columns,
                  p.int4_groups, to + (i / blocks * p.rows + row) * p.columns);
    }
  });
  return atoms;
}

}  // namespace

void linear_cpu(const LinearParams& p, const Tensor& like) {
  if (p.int4_groups) {
    const bool wide = p.type == FloatType::kFloat64;
    const Tensor atoms = wide ? unpacked<double>(p, like) : unpacked<float>(p, like);
    LinearParams numbers = p;
    numbers.atoms = atoms.const_data_ptr();
    numbers.atom_type = wide ? FloatType::kFloat64 : FloatType::kFloat32;
    numbers.int4_groups = 0;
    return linear_cpu(numbers, like);
  }
  if (p.type == FloatType::kFloat64)
    Linear<double>(p, like).run();
  else
    Linear<float>(p, like).run();
}

}  // namespace wlib::atoms
