#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "fp4/cpu.h"
#include "fp4/cpu_rows.h"
#include "torch/cpu_types.h"
#include "torch/empty.h"
#include "torch/matmul.h"
#include "wlib/layout/scales_128x4.h"

namespace wlib::fp4 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChunkFloats = 1 << 20;  // values of b held at a time: 4 MiB, for the cache

float* data(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

float global_scale(const Operand& o) {
  return o.packed.global_scale ? *o.packed.global_scale : 1.0f;
}

// Values of rows first .. first + count, without global or row scale.
void expand(const Operand& o, int64_t k, int64_t first, int64_t count, float* values) {
  torch::stable::parallel_for(0, count, 1 + (1 << 14) / (k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = first + i;
      float* to = values + i * k;
      if (o.carrier_type != Carrier::kNone)
        cpu_rows().expand_carrier(o.carrier + row * k, o.carrier_type, k, to);
      else if (o.packed.global_scale)
        cpu_rows().expand_nv(o.packed.codes + row * k / 2, o.packed.scales + row * k / kNvBlock, k,
                             to);
      else
        cpu_rows().expand_mx(o.packed.codes + row * k / 2, o.packed.scales + row * k / kMxBlock, k,
                             to);
    }
  });
}

// y[m, n0 ..] = sums * row scales * alpha, rounded once.
void store(const MatmulParams& p, float alpha, int64_t m, int64_t n0, int64_t count,
           const float* sums) {
  const float a = p.a.row_scale ? p.a.row_scale[m] : 1.0f;
  with_type(p.out_type, [&]<class T>(T*) {
    T* y = static_cast<T*>(p.y) + m * p.b.rows + n0;
    for (int64_t i = 0; i < count; ++i) {
      const float b = p.b.row_scale ? p.b.row_scale[n0 + i] : 1.0f;
      y[i] = sums[i] * a * b * alpha;
    }
  });
}

void matmul_values(const MatmulParams& p, float alpha, const Tensor& like) {
  const int64_t m = p.a.rows, n = p.b.rows, k = p.k;
  const auto floats = [&](int64_t rows, int64_t columns) {
    const int64_t shape[] = {rows, columns};
    return new_empty(like, shape, ScalarType::Float);
  };
  const int64_t chunk = std::clamp<int64_t>(kChunkFloats / std::max<int64_t>(k, 1), 1, n);
  Tensor a = floats(m, k), b = floats(chunk, k);
  expand(p.a, k, 0, m, data(a));
  for (int64_t n0 = 0; n0 < n; n0 += chunk) {
    const int64_t count = std::min(n - n0, chunk);
    expand(p.b, k, n0, count, data(b));
    Tensor sums = floats(m, count);
    matmul(a, torch::stable::transpose(torch::stable::narrow(b, 0, 0, count), 0, 1), sums);
    torch::stable::parallel_for(0, m, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) store(p, alpha, i, n0, count, data(sums) + i * count);
    });
  }
}

void matmul_exact(const MatmulParams& p, float alpha) {
  torch::stable::parallel_for(0, p.a.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(p.b.rows);
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t n = 0; n < p.b.rows; ++n) {
        sums[n] = cpu_rows().exact_dot(
            p.a.packed.codes + m * p.k / 2, p.a.packed.scales + m * p.k / kMxBlock,
            p.b.packed.codes + n * p.k / 2, p.b.packed.scales + n * p.k / kMxBlock, p.k);
      }
      store(p, alpha, m, 0, p.b.rows, sums.data());
    }
  });
}

std::vector<uint8_t> row_major_scales(const Operand& o, int64_t k) {
  const int64_t count = k / (o.packed.global_scale ? kNvBlock : kMxBlock);
  std::vector<uint8_t> scales(o.rows * count);
  for (int64_t row = 0; row < o.rows; ++row)
    for (int64_t i = 0; i < count; ++i)
      scales[row * count + i] = o.packed.scales[swizzled_scale(row, i, count)];
  return scales;
}

void matmul_swizzled(MatmulParams p, float alpha, const Tensor& like) {
  const auto a = row_major_scales(p.a, p.k), b = row_major_scales(p.b, p.k);
  p.a.packed.scales = a.data();
  p.b.packed.scales = b.data();
  matmul_values(p, alpha, like);
}

}  // namespace

void matmul_cpu(const MatmulParams& p, const Tensor& like) {
  const float alpha = p.alpha * (global_scale(p.a) * global_scale(p.b));
  if (p.mode == MatmulMode::kExact32)
    matmul_exact(p, alpha);
  else if (p.mode == MatmulMode::kBlockScaled)
    matmul_swizzled(p, alpha, like);
  else
    matmul_values(p, alpha, like);
}

}  // namespace wlib::fp4
