// The quantiser and the group sums on the CPU, a row at a time.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "int4fp8/cpu.h"
#include "int4fp8/cpu_kernels.h"
#include "torch/cpu_types.h"

namespace wlib::int4fp8 {
namespace {

// What the rows of a thread are made in.
struct Scratch {
  std::vector<float> value, other;
};

// h = x + residual in their type, also stored as the new residual.
void add_residual(const QuantizeParams& p, int64_t r, Scratch& s) {
  load(p.residual, p.x_type, r * p.residual_stride, p.k, s.other.data());
  with_type(p.x_type, [&]<class T>(T*) {
    T* stored = static_cast<T*>(p.new_residual) + r * p.k;
    for (int64_t i = 0; i < p.k; ++i) {
      stored[i] = T(s.value[i] + s.other[i]);
      s.value[i] = float(stored[i]);
    }
  });
}

void load_gate_and_up(const QuantizeParams& p, int64_t r, Scratch& s) {
  with_type(p.x_type, [&]<class T>(T*) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const int64_t step = p.interleaved ? 2 : 1, up = p.interleaved ? 1 : p.k;
    for (int64_t i = 0; i < p.k; ++i) s.value[i] = float(x[i * step]);
    for (int64_t i = 0; i < p.k; ++i) s.other[i] = float(x[i * step + up]);
  });
}

// The values of row r that are to be quantised.
const float* make_row(const QuantizeParams& p, const std::vector<float>& weight, int64_t r,
                      Scratch& s) {
  const CpuKernels& kernels = cpu_kernels();
  if (p.input == RowInput::kSiluMul) {
    load_gate_and_up(p, r, s);
    kernels.silu_mul_row(s.value.data(), s.other.data(), p.k, s.value.data());
    return s.value.data();
  }
  load(p.x, p.x_type, r * p.x_stride, p.k, s.value.data());
  if (p.residual) add_residual(p, r, s);
  if (p.input == RowInput::kRmsNorm)
    kernels.rms_norm_row(s.value.data(), weight.data(), p.k, p.eps);
  return s.value.data();
}

void clear_padding(float* sums, int64_t k, int group_log2, int64_t rows, int64_t pitch) {
  for (int64_t g = 0; g << group_log2 < k; ++g)
    std::fill(sums + g * pitch + rows, sums + (g + 1) * pitch, 0.0f);
}

}  // namespace

void quantize_cpu(const QuantizeParams& p) {
  const CpuKernels& kernels = cpu_kernels();
  std::vector<float> weight(p.weight ? p.k : 0);
  if (p.weight) load(p.weight, p.weight_type, 0, p.k, weight.data());
  torch::stable::parallel_for(0, p.rows, 1, [&](int64_t begin, int64_t end) {
    Scratch s{std::vector<float>(p.k), std::vector<float>(p.input == RowInput::kPlain ? 0 : p.k)};
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* codes = p.codes + r * p.k;
      p.scale[r] = kernels.quantize_row(make_row(p, weight, r, s), p.k, codes);
      if (p.sums) kernels.group_sums_row(codes, p.k, p.group_log2, p.sums + r, p.pitch);
    }
  });
  if (p.sums) clear_padding(p.sums, p.k, p.group_log2, p.rows, p.pitch);
}

void group_sums_cpu(const GroupSumsParams& p) {
  torch::stable::parallel_for(0, p.rows, kSumsAlignment, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      cpu_kernels().group_sums_row(p.x + r * p.x_stride, p.k, p.group_log2, p.sums + r, p.pitch);
    }
  });
  clear_padding(p.sums, p.k, p.group_log2, p.rows, p.pitch);
}

}  // namespace wlib::int4fp8
