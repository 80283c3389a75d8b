#include "int4fp8/cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cpu_isa.h"
#include "int4fp8/cpu_kernels.h"
#include "torch/cpu_types.h"
#include "torch/empty.h"
#include "torch/matmul.h"
#include "wlib/numerics/e4m3.h"

namespace wlib::int4fp8 {

WLIB_DECLARE_PER_ISA(CpuKernels, kKernels)

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = WLIB_PICK_ISA(kKernels);
  return chosen;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// From this many tokens on, dequantising once and calling torch's FP32 matmul is faster than
// working on codes.
constexpr int64_t kMatmulTokens = 16;
constexpr int64_t kGrainWeights = 128 << 10;  // fewer are not worth a second thread
constexpr int64_t kChunkFloats = 1
                                 << 20;  // dequantised weights held at a time: 4 MiB, for the cache

Tensor floats(const Tensor& like, std::vector<int64_t> shape) {
  return new_empty(like, shape, ScalarType::Float);
}
float* data(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

struct Weight {
  int4::Layout layout;
  int64_t k_tiles, row_blocks;
  explicit Weight(const GemmParams& p)
      : layout{p.groups_per_tile, p.zero_points},
        k_tiles(int4::ceil_div(p.k, int4::kTileColumns)),
        row_blocks(int4::ceil_div(p.n, int4::kTileRows)) {}
  const uint8_t* block(const GemmParams& p, int64_t i) const {
    return p.weight + i * layout.block_bytes(k_tiles);
  }
};

// Turns sums over k into outputs.
class Finish {
 public:
  Finish(const GemmParams& p, const Weight& w)
      : p_(p), e_(p.epilogue), channel_(w.row_blocks * int4::kTileRows), bias_(p.n) {
    for (int64_t i = 0; i < w.row_blocks; ++i) {
      std::memcpy(&channel_[i * int4::kTileRows], w.block(p, i) + w.k_tiles * w.layout.tile_bytes(),
                  int4::kChannelScaleBytes);
    }
    if (e_.bias) load(e_.bias, e_.bias_type, 0, p.n, bias_.data());
  }
  // What rows n0 to n0 + count of the weight give for token m, from sums[count]; n0 is even.
  void store(int64_t m, int64_t n0, int64_t count, const float* sums) const {
    for (int64_t i = 0; i < count; i += kPiece)
      store_piece(m, n0 + i, std::min(count - i, kPiece), sums + i);
  }

 private:
  static constexpr int64_t kPiece = 64;

  void store_piece(int64_t m, int64_t n0, int64_t count, const float* sums) const {
    float v[kPiece], add[kPiece];
    for (int64_t i = 0; i < count; ++i)
      v[i] = sums[i] * (p_.x_scale[m] * channel_[n0 + i]) + bias_[n0 + i];
    int64_t first = m * p_.n + n0;
    if (e_.activation == Activation::kSiluMul) {
      first /= 2, count /= 2;
      for (int64_t j = 0; j < count; ++j)
        v[j] = v[2 * j] / (1 + std::exp(-v[2 * j])) * v[2 * j + 1];
    }
    if (e_.residual) {
      load(e_.residual, e_.residual_type, first, count, add);
      for (int64_t j = 0; j < count; ++j) v[j] += add[j];
    }
    round(v, first, count);
  }
  void round(const float* v, int64_t first, int64_t count) const {
    if (e_.out_type == FloatType::kE4M3) {
      for (int64_t j = 0; j < count; ++j)
        static_cast<uint8_t*>(e_.y)[first + j] = float_to_e4m3(v[j] / *e_.out_scale);
    } else {
      wlib::store(v, e_.y, e_.out_type, first, count);
    }
  }

  const GemmParams& p_;
  const Epilogue& e_;
  std::vector<float> channel_, bias_;
};

void gemm_on_codes(const GemmParams& p, const Weight& w) {
  const CpuKernels& kernels = cpu_kernels();
  const Finish finish(p, w);
  std::vector<TileActivations> x(p.m * w.k_tiles);
  std::vector<float> starts(p.m);
  for (int64_t m = 0; m < p.m; ++m) {
    starts[m] = kernels.gather_activations(p.x + m * p.x_stride, p.k, w.k_tiles, w.layout,
                                           &x[m * w.k_tiles]);
  }
  const int64_t grain = 1 + kGrainWeights / (1 + w.k_tiles * int4::kTileColumns * int4::kTileRows);
  torch::stable::parallel_for(0, w.row_blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(int4::kTileRows * p.m);
    for (int64_t block = begin; block < end; ++block) {
      kernels.multiply_block(w.block(p, block), w.k_tiles, w.layout, x.data(), starts.data(), p.m,
                             sums.data());
      const int64_t first = block * int4::kTileRows,
                    rows = std::min<int64_t>(p.n - first, int4::kTileRows);
      for (int64_t m = 0; m < p.m; ++m) finish.store(m, first, rows, &sums[m * int4::kTileRows]);
    }
  });
}

void dequantize(const GemmParams& p, const Weight& w, int64_t first_block, int64_t rows,
                float* out) {
  torch::stable::parallel_for(
      0, int4::ceil_div(rows, int4::kTileRows), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i * int4::kTileRows,
                        count = std::min<int64_t>(rows - row, int4::kTileRows);
          cpu_kernels().dequantize_block(w.block(p, first_block + i), w.k_tiles, w.layout,
                                         int(count), p.k, out + row * p.k);
        }
      });
}

void gemm_dequantized(const GemmParams& p, const Weight& w, const Tensor& like) {
  const Finish finish(p, w);
  const int64_t chunk_blocks =
      std::clamp<int64_t>(kChunkFloats / (p.k * int4::kTileRows), 1, w.row_blocks);
  const int64_t chunk = std::min(p.n, chunk_blocks * int4::kTileRows);
  const Tensor x = floats(like, {p.m, p.k});
  Tensor weight = floats(like, {chunk, p.k}), product = floats(like, {chunk * p.m});
  torch::stable::parallel_for(0, p.m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      cpu_kernels().expand(p.x + m * p.x_stride, p.k, data(x) + m * p.k);
  });
  for (int64_t n0 = 0; n0 < p.n; n0 += chunk) {
    const int64_t rows = std::min(p.n - n0, chunk);
    dequantize(p, w, n0 / int4::kTileRows, rows, data(weight));
    const std::vector<int64_t> shape = {p.m, rows};
    Tensor sums = torch::stable::view(torch::stable::narrow(product, 0, 0, p.m * rows), shape);
    matmul(x, torch::stable::transpose(torch::stable::narrow(weight, 0, 0, rows), 0, 1), sums);
    torch::stable::parallel_for(0, p.m, 1, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) finish.store(m, n0, rows, data(sums) + m * rows);
    });
  }
}

}  // namespace

void gemm_cpu(const GemmParams& p, const Tensor& x) {
  const Weight w(p);
  if (p.m >= kMatmulTokens && p.k > 0)
    gemm_dequantized(p, w, x);
  else
    gemm_on_codes(p, w);
}

// One expert after the other.
void gemm_grouped_cpu(const GemmParams& p, const Tensor& x) {
  const Weight w(p);
  const Epilogue& e = p.epilogue;
  const auto rows = [&](const void* of, FloatType type, int64_t elements) {
    return of ? static_cast<const uint8_t*>(of) + elements * int64_t(bytes_of(type)) : nullptr;
  };
  for (int64_t expert = 0; expert < p.experts; ++expert) {
    const int64_t first = p.expert_offset(expert), outputs = first * e.columns(p.n);
    GemmParams one = p;
    one.m = p.expert_offset(expert + 1) - first;
    if (one.m == 0) continue;
    one.expert_offsets = nullptr;
    one.x += first * p.x_stride;
    one.x_scale += first;
    one.weight = w.block(p, expert * w.row_blocks);
    one.epilogue.bias = rows(e.bias, e.bias_type, expert * p.n);
    one.epilogue.residual = rows(e.residual, e.residual_type, outputs);
    one.epilogue.y = static_cast<uint8_t*>(e.y) + outputs * int64_t(bytes_of(e.out_type));
    gemm_cpu(one, x);
  }
}

const char* gemm_cpu_rows() {
  static const std::string text =
      "cpu, M < " + std::to_string(kMatmulTokens) +
      ": multiplies codes\ncpu, any M: dequantises, then torch.mm in float32\n";
  return text.c_str();
}

}  // namespace wlib::int4fp8
