#include "atoms/cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "atoms/block_kernels.h"
#include "cpu_isa.h"
#include "torch/cpu_types.h"

namespace wlib::atoms {

WLIB_DECLARE_PER_ISA(BlockKernels<float>, kFloatKernels)
WLIB_DECLARE_PER_ISA(BlockKernels<double>, kDoubleKernels)

template <>
const BlockKernels<float>& block_kernels<float>() {
  static const auto& chosen = WLIB_PICK_ISA(kFloatKernels);
  return chosen;
}
template <>
const BlockKernels<double>& block_kernels<double>() {
  static const auto& chosen = WLIB_PICK_ISA(kDoubleKernels);
  return chosen;
}

namespace {

constexpr int64_t kGrainElements = 32 << 10;  // fewer are not worth a second thread
constexpr int64_t kMinChunkBlocks = 16;       // whose sums of products are one partial sum
constexpr int64_t kMaxChunks = 1024;          // per row

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The elements as rows of blocks. Where nothing depends on the row, all elements are one row.
struct Grid {
  int64_t rows, columns, blocks_per_row;
  Grid(int64_t rows, int64_t columns, bool rows_matter)
      : rows(rows_matter ? rows : 1),
        columns(rows_matter ? columns : rows * columns),
        blocks_per_row(ceil_div(this->columns, kBlock)) {}
};
struct Block {
  int64_t row, column, offset, count;
  Block(const Grid& g, int64_t row, int64_t index)
      : row(row),
        column(index * kBlock),
        offset(row * g.columns + column),
        count(std::min(kBlock, g.columns - column)) {}
};

int64_t grain(int64_t arrays) { return 1 + kGrainElements / (kBlock * (1 + arrays)); }

// The coefficients [layers, atoms] of a row, or [atoms, layers] if transposed.
template <class Acc>
void coefficients(const void* coef, int64_t count, int64_t rows, int64_t row, Acc* out) {
  const Acc* all = static_cast<const Acc*>(coef);
  for (int64_t i = 0; i < count; ++i) out[i] = all[i * rows + row];
}

// A block of every array of [arrays, size], padded with zeros.
template <class Acc>
void load_blocks(const void* data, FloatType type, int64_t arrays, int64_t size, const Block& at,
                 Acc* out) {
  for (int64_t i = 0; i < arrays; ++i, out += kBlock) {
    load(data, type, i * size + at.offset, at.count, out);
    std::fill(out + at.count, out + kBlock, Acc(0));
  }
}

template <class Acc>
class Reconstruction {
 public:
  explicit Reconstruction(const ReconstructParams& p)
      : p_(p),
        grid_(p.rows, p.columns, p.coef_per_row || p.rank > 0),
        a_(p.num_layers * p.rows * p.rank),
        b_(p.num_layers * p.rank * p.columns) {
    load(p.a, p.residual_type, 0, int64_t(a_.size()), a_.data());
    load(p.b, p.residual_type, 0, int64_t(b_.size()), b_.data());
  }
  void run() const {
    const int64_t blocks = grid_.rows * grid_.blocks_per_row;
    const int64_t arrays = p_.num_atoms + p_.num_layers;
    torch::stable::parallel_for(0, blocks, grain(arrays), [&](int64_t begin, int64_t end) {
      std::vector<Acc> coef(p_.num_layers * p_.num_atoms), atoms(p_.num_atoms * kBlock),
          out(p_.num_layers * kBlock);
      for (int64_t i = begin; i < end; ++i) {
        const Block at(grid_, i / grid_.blocks_per_row, i % grid_.blocks_per_row);
        if (p_.coef_per_row || i == begin)
          coefficients(p_.coef, int64_t(coef.size()), p_.coef_per_row ? p_.rows : 1,
                       p_.coef_per_row ? at.row : 0, coef.data());
        for (int64_t s = 0; s < p_.num_atoms; ++s) {
          load(p_.atom[s], p_.atom_type, at.offset, at.count, &atoms[s * kBlock]);
          std::fill_n(&atoms[s * kBlock] + at.count, kBlock - at.count, Acc(0));
        }
        block_kernels<Acc>().combine(coef.data(), p_.num_layers, p_.num_atoms, atoms.data(),
                                     out.data());
        for (int64_t l = 0; l < p_.num_layers; ++l) finish(at, l, &out[l * kBlock]);
      }
    });
  }

 private:
  void finish(const Block& at, int64_t l, Acc* sums) const {
    for (int64_t i = 0; i < at.count; ++i) sums[i] *= Acc(p_.scale);
    if (p_.base) {
      Acc base[kBlock];
      load(p_.base, p_.base_type, l * p_.rows * p_.columns + at.offset, at.count, base);
      for (int64_t i = 0; i < at.count; ++i) sums[i] += base[i];
    }
    for (int64_t r = 0; r < p_.rank; ++r) {
      const Acc a = a_[(l * p_.rows + at.row) * p_.rank + r];
      const Acc* b = &b_[(l * p_.rank + r) * p_.columns + at.column];
      for (int64_t i = 0; i < at.count; ++i) sums[i] += a * b[i];
    }
    store(sums, p_.out[l], p_.out_type, at.offset, at.count);
  }

  const ReconstructParams& p_;
  Grid grid_;
  std::vector<Acc> a_, b_;
};

template <class Acc>
class Backward {
 public:
  explicit Backward(const ReconstructBackwardParams& p)
      : p_(p),
        grid_(p.rows, p.columns, p.coef_per_row),
        chunk_blocks_(std::max(kMinChunkBlocks, ceil_div(grid_.blocks_per_row, kMaxChunks))),
        chunks_(ceil_div(grid_.blocks_per_row, chunk_blocks_)),
        partial_(grid_.rows * chunks_ * pairs()) {}

  void run() {
    const int64_t weight = grain(p_.num_layers + p_.num_atoms) / chunk_blocks_;
    torch::stable::parallel_for(0, grid_.rows * chunks_, 1 + weight,
                                [&](int64_t begin, int64_t end) { sweep(begin, end); });
    Acc* out = static_cast<Acc*>(p_.grad_coef);
    for (int64_t row = 0; row < grid_.rows; ++row) {
      for (int64_t pair = 0; pair < pairs(); ++pair) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks_; ++chunk)
          sum += partial_[(row * chunks_ + chunk) * pairs() + pair];
        out[pair * grid_.rows + row] = Acc(p_.scale * sum);
      }
    }
  }

 private:
  int64_t pairs() const { return p_.num_layers * p_.num_atoms; }

  // Both gradients of some chunks: every element of grad and of the atoms is read once.
  void sweep(int64_t begin, int64_t end) {
    const int64_t layers = p_.num_layers, atoms = p_.num_atoms, size = p_.rows * p_.columns;
    std::vector<Acc> coef(pairs()), weight(pairs()), grad(layers * kBlock), values(atoms * kBlock),
        out(atoms * kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / chunks_, first = i % chunks_ * chunk_blocks_;
      coefficients(p_.coef, pairs(), grid_.rows, row, coef.data());
      for (int64_t l = 0; l < layers; ++l)
        for (int64_t s = 0; s < atoms; ++s) weight[s * layers + l] = coef[l * atoms + s];
      const int64_t last = std::min(first + chunk_blocks_, grid_.blocks_per_row);
      for (int64_t index = first; index < last; ++index) {
        const Block at(grid_, row, index);
        load_blocks(p_.grad, p_.grad_type, layers, size, at, grad.data());
        load_blocks(p_.atoms, p_.atom_type, atoms, size, at, values.data());
        const auto& kernels = block_kernels<Acc>();
        kernels.products(grad.data(), layers, values.data(), atoms, &partial_[i * pairs()]);
        kernels.combine(weight.data(), atoms, layers, grad.data(), out.data());
        for (Acc& value : out) value *= Acc(p_.scale);
        for (int64_t s = 0; s < atoms; ++s) {
          const int64_t offset = s * size + at.offset;
          if (p_.update.rule == UpdateRule::kNone)
            store(&out[s * kBlock], p_.grad_atoms, p_.atom_type, offset, at.count);
          else
            update(offset, at.count, &values[s * kBlock], &out[s * kBlock]);
        }
      }
    }
  }

  // A step of the optimiser on `count` elements of the atoms, whose values are given.
  void update(int64_t offset, int64_t count, Acc* values, const Acc* gradients) {
    const AtomsUpdate& u = p_.update;
    const auto factors = u.factors.template as<Acc>();
    Acc first[kBlock], second[kBlock] = {};
    load(u.first, u.first_type, offset, count, first);
    if (u.second) load(u.second, u.second_type, offset, count, second);
    for (int64_t i = 0; i < count; ++i) {
      UpdateState<Acc> state = {values[i], first[i], second[i]};
      update_step(u.rule, factors, gradients[i], state);
      values[i] = state.parameter;
      first[i] = state.first;
      second[i] = state.second;
    }
    store(values, u.atoms, p_.atom_type, offset, count);
    store(first, u.first, u.first_type, offset, count);
    if (u.second) store(second, u.second, u.second_type, offset, count);
  }

  const ReconstructBackwardParams& p_;
  Grid grid_;
  int64_t chunk_blocks_, chunks_;
  std::vector<double> partial_;  // [rows, chunks, layers, atoms]
};

}  // namespace

void reconstruct_cpu(const ReconstructParams& p) {
  if (p.atom_type == FloatType::kFloat64)
    Reconstruction<double>(p).run();
  else
    Reconstruction<float>(p).run();
}

void reconstruct_backward_cpu(const ReconstructBackwardParams& p) {
  if (p.atom_type == FloatType::kFloat64)
    Backward<double>(p).run();
  else
    Backward<float>(p).run();
}

}  // namespace wlib::atoms
