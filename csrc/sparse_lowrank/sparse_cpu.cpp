// The specification of wlib::tile_sparse_matmul and tile_sampled_matmul.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu_isa.h"
#include "sparse_lowrank/sparse.h"
#include "sparse_lowrank/sparse_kernels.h"
#include "torch/cpu_types.h"

namespace wlib::sparse_lowrank {

WLIB_DECLARE_PER_ISA(SparseKernels<float>, kFloatSparseKernels)
WLIB_DECLARE_PER_ISA(SparseKernels<double>, kDoubleSparseKernels)

template <>
const SparseKernels<float>& sparse_kernels<float>() {
  static const auto& chosen = WLIB_PICK_ISA(kFloatSparseKernels);
  return chosen;
}
template <>
const SparseKernels<double>& sparse_kernels<double>() {
  static const auto& chosen = WLIB_PICK_ISA(kDoubleSparseKernels);
  return chosen;
}

namespace {

constexpr int64_t kManyBlocks = 8;  // of tokens: enough for the threads there are

struct Rows {
  const void* data;
  int64_t stride, tokens, columns;
  FloatType type;
};

// kTokenBlock tokens of some columns, column by column; zeros beyond the last token and column.
template <class Acc>
void gather(const Rows& rows, int64_t token, int64_t column, int64_t columns, Acc* to) {
  std::fill_n(to, columns * kTokenBlock, Acc(0));
  const int64_t tokens = std::min<int64_t>(kTokenBlock, rows.tokens - token);
  const int64_t count = std::min(columns, rows.columns - column);
  with_type(rows.type, [&]<class T>(T*) {
    for (int64_t t = 0; t < tokens; ++t) {
      const T* from = static_cast<const T*>(rows.data) + (token + t) * rows.stride + column;
      for (int64_t c = 0; c < count; ++c) to[c * kTokenBlock + t] = Acc(from[c]);
    }
  });
}

// Rounded to the type of 16-bit activations, as the tensor cores take them.
template <class Acc>
std::vector<Acc> values_of(const SparseMatmulParams& p) {
  const TileSparse& m = p.matrix;
  std::vector<Acc> values(m.count);
  load(m.values, m.value_type, 0, m.count, values.data());
  if (p.type == m.value_type || bytes_of(p.type) != 2) return values;
  std::vector<uint16_t> rounded(m.count);
  store(values.data(), rounded.data(), p.type, 0, m.count);
  load(rounded.data(), p.type, 0, m.count, values.data());
  return values;
}

// One tile of outputs for one block of tokens.
template <class Acc>
void finish(const SparseMatmulParams& p, int64_t rows, int64_t token, int64_t row,
            const Acc* sums) {
  const int64_t count = std::min<int64_t>(kSparseTile, rows - row);
  Acc line[kSparseTile], bias[kSparseTile], base[kSparseTile];
  if (p.bias) load(p.bias, p.type, row, count, bias);
  for (int64_t t = 0; t < std::min<int64_t>(kTokenBlock, p.tokens - token); ++t) {
    const int64_t at = (token + t) * rows + row;
    if (p.base) load(p.base, p.type, at, count, base);
    for (int64_t n = 0; n < count; ++n) {
      line[n] = sums[n * kTokenBlock + t];
      if (p.bias) line[n] += bias[n];
      if (p.base) line[n] += base[n];
    }
    store(line, p.out, p.type, at, count);
  }
}

template <class Acc>
void matmul_rows(const SparseMatmulParams& p, const Acc* values, int64_t token, int64_t row_tile,
                 const Acc* x) {
  const TileSparse& m = p.matrix;
  const int64_t rows = p.transposed ? m.columns : m.rows;
  const int64_t columns = p.transposed ? m.row_tiles() : m.column_tiles();
  std::vector<Acc> sums(kSparseTile * kTokenBlock, Acc(0));
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t tile =
        p.transposed ? j * m.column_tiles() + row_tile : row_tile * m.column_tiles() + j;
    const int64_t begin = m.offsets[tile], count = m.offsets[tile + 1] - begin;
    sparse_kernels<Acc>().multiply(values + begin, m.positions + begin, count, p.transposed,
                                   x + j * kSparseTile * kTokenBlock, sums.data());
  }
  finish(p, rows, token, row_tile * kSparseTile, sums.data());
}

template <class Acc>
void matmul(const SparseMatmulParams& p) {
  const TileSparse& m = p.matrix;
  const std::vector<Acc> values = values_of<Acc>(p);
  const int64_t row_tiles = p.transposed ? m.column_tiles() : m.row_tiles();
  const int64_t columns = p.transposed ? m.row_tiles() : m.column_tiles();
  const Rows x{p.x, p.x_stride, p.tokens, p.transposed ? m.rows : m.columns, p.type};
  const int64_t blocks = (p.tokens + kTokenBlock - 1) / kTokenBlock;
  // A block's activations are brought into columns once; few blocks share their rows out.
  const int64_t shares = blocks >= kManyBlocks ? 1 : row_tiles;
  torch::stable::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    std::vector<Acc> columns_of_x(columns * kSparseTile * kTokenBlock);
    int64_t have = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / shares, token = block * kTokenBlock;
      if (block != have) gather(x, token, 0, columns * kSparseTile, columns_of_x.data());
      have = block;
      if (shares > 1) {
        matmul_rows(p, values.data(), token, item % shares, columns_of_x.data());
        continue;
      }
      for (int64_t i = 0; i < row_tiles; ++i)
        matmul_rows(p, values.data(), token, i, columns_of_x.data());
    }
  });
}

template <class Acc>
void sample(const SampleParams& p) {
  const TileSparse& m = p.matrix;
  const Rows dy{p.dy, p.dy_stride, p.tokens, m.rows, p.type};
  const Rows x{p.x, p.x_stride, p.tokens, m.columns, p.type};
  torch::stable::parallel_for(0, m.tiles(), 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t kSize = kSparseTile * kTokenBlock;
    std::vector<Acc> left(kSize), right(kSize);
    std::vector<double> sums;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = m.offsets[tile], count = m.offsets[tile + 1] - first;
      if (count == 0) continue;
      sums.assign(count, 0.0);
      for (int64_t token = 0; token < p.tokens; token += kTokenBlock) {
        gather(dy, token, tile / m.column_tiles() * kSparseTile, kSparseTile, left.data());
        gather(x, token, tile % m.column_tiles() * kSparseTile, kSparseTile, right.data());
        sparse_kernels<Acc>().sample(m.positions + first, count, left.data(), right.data(),
                                     sums.data());
      }
      const std::vector<Acc> rounded(sums.begin(), sums.end());
      store(rounded.data(), p.values, m.value_type, first, count);
    }
  });
}

}  // namespace

void sparse_matmul_cpu(const SparseMatmulParams& p) {
  p.type == FloatType::kFloat64 ? matmul<double>(p) : matmul<float>(p);
}
void sparse_sample_cpu(const SampleParams& p) {
  p.type == FloatType::kFloat64 ? sample<double>(p) : sample<float>(p);
}

}  // namespace wlib::sparse_lowrank
