#include "int4fp8/cpu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "cpu_isa.h"
#include "int4fp8/cpu_kernels.h"
#include "torch/cpu_types.h"
#include "torch/empty.h"
#include "torch/matmul.h"

namespace wlib::int4fp8 {
namespace avx512vnni {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace baseline {
extern const CpuKernels kKernels;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen =
      pick_isa(baseline::kKernels, avx2::kKernels, avx512::kKernels, avx512vnni::kKernels);
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

// What follows the sum over k: scales, bias and the one rounding to the output type.
class Epilogue {
 public:
  Epilogue(const GemmParams& p, const Weight& w)
      : p_(p), channel_(w.row_blocks * int4::kTileRows), bias_(p.n) {
    for (int64_t i = 0; i < w.row_blocks; ++i) {
      std::memcpy(&channel_[i * int4::kTileRows], w.block(p, i) + w.k_tiles * w.layout.tile_bytes(),
                  int4::kChannelScaleBytes);
    }
    if (p.bias) to_float(p.bias, p.bias_type, 0, p.n, bias_.data());
  }
  // y[m, n0 ..] from sums[count]
  void store(int64_t m, int64_t n0, int64_t count, const float* sums) const {
    with_type(p_.out_type, [&]<class T>(T*) {
      T* y = static_cast<T*>(p_.y) + m * p_.n + n0;
      for (int64_t i = 0; i < count; ++i)
        y[i] = sums[i] * (p_.x_scale[m] * channel_[n0 + i]) + bias_[n0 + i];
    });
  }

 private:
  const GemmParams& p_;
  std::vector<float> channel_, bias_;
};

void gemm_on_codes(const GemmParams& p, const Weight& w) {
  const CpuKernels& kernels = cpu_kernels();
  const Epilogue epilogue(p, w);
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
      for (int64_t m = 0; m < p.m; ++m) epilogue.store(m, first, rows, &sums[m * int4::kTileRows]);
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
  const Epilogue epilogue(p, w);
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
      for (int64_t m = begin; m < end; ++m) epilogue.store(m, n0, rows, data(sums) + m * rows);
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

const char* gemm_cpu_rows() {
  static const std::string text =
      "cpu, M < " + std::to_string(kMatmulTokens) +
      ": multiplies codes\ncpu, any M: dequantises, then torch.mm in float32\n";
  return text.c_str();
}

}  // namespace wlib::int4fp8
