#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpu_isa.h"
#include "fp4/cpu.h"
#include "fp4/cpu_rows.h"
#include "torch/cpu_types.h"
#include "wlib/layout/scales_128x4.h"

namespace wlib::fp4 {

WLIB_DECLARE_PER_ISA(CpuRows, kRows)

const CpuRows& cpu_rows() {
  static const CpuRows& chosen = WLIB_PICK_ISA(kRows);
  return chosen;
}

namespace {

constexpr int64_t kStrip = 32;              // columns of the source that are transposed at a time
constexpr int64_t kGrainValues = 32 << 10;  // fewer are not worth a second thread

// values = source[row, first .. first + count], first and count multiples of a block.
void load_values(const Source& s, int64_t row, int64_t first, int64_t count, float* values) {
  if (s.x) return load(s.x, s.x_type, row * s.x_stride + first, count, values);
  const bool nv = s.packed.global_scale;
  const int64_t block = nv ? kNvBlock : kMxBlock;
  const uint8_t* codes = s.packed.codes + (row * s.columns + first) / 2;
  const uint8_t* scales = s.packed.scales + (row * s.columns + first) / block;
  (nv ? cpu_rows().expand_nv : cpu_rows().expand_mx)(codes, scales, count, values);
  if (!nv) return;
  for (int64_t i = 0; i < count; ++i) values[i] *= *s.packed.global_scale;
}

// Calls f(row, values) for every row that is to be quantised, rotated; values may be written to.
template <class F>
void for_rows(const QuantizeParams& p, F f) {
  const int64_t rows = p.rows(), columns = p.columns();
  std::vector<float> signs(p.signs ? p.hadamard : 0);
  for (size_t i = 0; i < signs.size(); ++i) signs[i] = p.signs[i] < 0 ? -1.0f : 1.0f;
  const auto finish = [&](int64_t row, float* values) {
    if (p.hadamard)
      cpu_rows().rotate(values, columns, p.hadamard, p.signs ? signs.data() : nullptr);
    f(row, values);
  };
  const int64_t strip = p.transpose ? kStrip : 1;
  const int64_t strips = (rows + strip - 1) / strip;
  const int64_t grain = 1 + kGrainValues / (1 + columns * strip);
  torch::stable::parallel_for(0, strips, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(columns * strip), line(kStrip);
    for (int64_t i = begin; i < end; ++i) {
      if (!p.transpose) {
        load_values(p.source, i, 0, columns, values.data());
        finish(i, values.data());
        continue;
      }
      const int64_t first = i * kStrip, count = std::min(kStrip, rows - first);
      for (int64_t k = 0; k < columns; ++k) {
        load_values(p.source, k, first, count, line.data());
        for (int64_t j = 0; j < count; ++j) values[j * columns + k] = line[j];
      }
      for (int64_t j = 0; j < count; ++j) finish(first + j, &values[j * columns]);
    }
  });
}

// Of the largest magnitude outside blocks with NaN or Inf.
float global_scale_of(const QuantizeParams& p) {
  std::vector<float> largest(p.rows());
  for_rows(p, [&](int64_t row, const float* values) {
    largest[row] = cpu_rows().largest(values, p.columns());
  });
  const auto top = std::max_element(largest.begin(), largest.end());
  return (top == largest.end() ? 0.0f : *top) /
         (largest_nv_scale(p.rule, p.rounding) * nv_divisor(p.rounding));
}

// Bits of the largest magnitude of every 16 x 16 values.
std::vector<uint32_t> square_maxima(const QuantizeParams& p) {
  const int64_t blocks = p.columns() / kNvBlock, squares = (p.rows() + kNvBlock - 1) / kNvBlock;
  std::vector<uint32_t> of_rows(p.rows() * blocks), largest(squares * blocks);
  for_rows(p, [&](int64_t row, const float* values) {
    cpu_rows().block_maxima(values, p.columns(), of_rows.data() + row * blocks);
  });
  for (int64_t i = 0; i < p.rows() * blocks; ++i) {
    uint32_t& square = largest[i / blocks / kNvBlock * blocks + i % blocks];
    square = std::max(square, of_rows[i]);
  }
  return largest;
}

void store_scales(const QuantizeParams& p, int64_t row, const std::vector<uint8_t>& scales) {
  const int64_t count = int64_t(scales.size());
  for (int64_t i = 0; i < count; ++i)
    p.out.scales[p.swizzle ? swizzled_scale(row, i, count) : row * count + i] = scales[i];
}

}  // namespace

void quantize_cpu(const QuantizeParams& p) {
  const int64_t columns = p.columns();
  if (!is_mx(p.rule) && !p.global_scale_is_given) *p.global_scale = global_scale_of(p);
  const float global_scale = is_mx(p.rule) ? 0.0f : *p.global_scale;
  if (p.swizzle && p.out.scales) {  // the padding
    const int64_t bytes = padded_scale_rows(p.rows()) * padded_scale_columns(columns / p.block());
    std::fill_n(p.out.scales, bytes, uint8_t(0));
  }
  std::vector<uint32_t> maxima;
  if (p.square) maxima = square_maxima(p);
  const auto at = [](auto* base, int64_t offset) { return base ? base + offset : nullptr; };
  for_rows(p, [&](int64_t row, const float* values) {
    std::vector<uint8_t> scales(columns / p.block());
    const uint32_t* own = p.square ? &maxima[row / kNvBlock * scales.size()] : nullptr;
    cpu_rows().quantize(
        values, {p, row, global_scale, own},
        {at(p.out.codes, row * columns / 2), scales.data(), at(p.out.carrier, row * columns),
         at(p.out.row_scale, row), at(p.out.mask, row * columns / 8)});
    if (p.out.scales) store_scales(p, row, scales);
  });
}

void signs_cpu(const SignsParams& p) {
  for (int i = 0; i < p.size; ++i) p.signs[i] = sign_of(p, i);
}

void hadamard_cpu(const HadamardParams& p) {
  torch::stable::parallel_for(
      0, p.rows, 1 + kGrainValues / (1 + p.columns), [&](int64_t begin, int64_t end) {
        std::vector<float> values(p.columns), signs(p.size, 1.0f);
        for (int i = 0; p.signs && i < p.size; ++i) signs[i] = p.signs[i] < 0 ? -1.0f : 1.0f;
        for (int64_t row = begin; row < end; ++row) {
          load(p.x, p.type, row * p.x_stride, p.columns, values.data());
          cpu_rows().rotate(values.data(), p.columns, p.size, p.inverse ? nullptr : signs.data());
          if (p.inverse)
            for (int64_t i = 0; i < p.columns; ++i) values[i] *= signs[i % p.size];
          store(values.data(), p.y, p.type, row * p.columns, p.columns);
        }
      });
}

}  // namespace wlib::fp4
