// What the kernels for 16-bit activations get, and how it follows from the ops' parameters.
#pragma once

#include "sparse_lowrank/sm90_token_boxes.h"
#include "wlib/params/sparse_lowrank.h"

namespace wlib::sparse_lowrank {

constexpr int kProductTokens = kMmaConsumers * kMmaRows;  // of a CTA
constexpr int kSampleStep = 64;                           // tokens
constexpr int kPair = 2;  // CTAs of a sampled product that work on the same columns

struct SparseProductParams {
  TileSparse matrix;
  TokenSource x;
  const void* base;  // [tokens, outputs] of the type of x, or null
  const void* bias;  // [outputs], or null
  void* out;         // [tokens, outputs]
  bool transposed;
  WLIB_HOST_DEVICE int outputs() const { return transposed ? matrix.columns : matrix.rows; }
  WLIB_HOST_DEVICE int steps() const {
    return transposed ? matrix.row_tiles() : matrix.column_tiles();
  }
  WLIB_HOST_DEVICE int64_t items() const {
    const int64_t token_blocks = (x.tokens + kProductTokens - 1) / kProductTokens;
    return token_blocks * ((outputs() + kMmaColumns - 1) / kMmaColumns);
  }
};

struct SparseSampleParams {
  SampleParams sample;
  TokenSource dy, x;
  WLIB_HOST_DEVICE int64_t column_blocks() const {
    return (sample.matrix.columns + kMmaColumns - 1) / kMmaColumns;
  }
  WLIB_HOST_DEVICE int64_t blocks() const {  // of a pair of CTAs
    return (sample.matrix.row_tiles() + kPair - 1) / kPair * column_blocks();
  }
  WLIB_HOST_DEVICE int64_t items() const { return blocks() * sample.splits(); }
};

// False if the driver refuses a tensor map.
inline bool make_product_params(const SparseMatmulParams& p, SparseProductParams* to) {
  to->matrix = p.matrix;
  to->base = p.base;
  to->bias = p.bias;
  to->out = p.out;
  to->transposed = p.transposed;
  return make_token_source(p.x, p.x_stride, p.tokens,
                           p.transposed ? p.matrix.rows : p.matrix.columns, kProductTokens, &to->x);
}
inline bool make_sample_params(const SampleParams& p, SparseSampleParams* to) {
  to->sample = p;
  return make_token_source(p.dy, p.dy_stride, p.tokens, p.matrix.rows, kSampleStep, &to->dy) &&
         make_token_source(p.x, p.x_stride, p.tokens, p.matrix.columns, kSampleStep, &to->x);
}

}  // namespace wlib::sparse_lowrank
