// What the ops of family int4fp8 hand to their kernels, CPU and CUDA alike. Filled in one place,
// gemm.cpp and quantize.cpp, after every argument has been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wlib/params/float_type.h"

namespace wlib::int4fp8 {

enum class Activation : int { kNone, kSiluMul };

// From sums to outputs, in float32 and in this order:
//   v[m, n] = sum[m, n] * (x_scale[m] * channel_scale[n]) + bias[n]
//   kSiluMul: v[m, j] = silu(v[m, 2 j]) * v[m, 2 j + 1], half as many columns
//   y[m, j] = v[m, j] + residual[m, j], for E4M3 divided by out_scale; rounded once
struct Epilogue {
  const void* bias;        // [n] of bias_type, or null; with experts [experts, n]
  const void* residual;    // [m, columns] of residual_type, contiguous, or null; may be y
  const float* out_scale;  // [], only of E4M3 outputs
  void* y;                 // [m, columns] of out_type, contiguous
  Activation activation;
  FloatType bias_type, residual_type, out_type;  // kE4M3: outputs only

  constexpr int64_t columns(int64_t n) const {
    return activation == Activation::kSiluMul ? n / 2 : n;
  }
};

// sum[m, n] = sum_g scale[n, g] * sum_{k in g} x[m, k] * (code[n, k] - zero[n, g])
// With experts, tokens expert_offsets[e] to expert_offsets[e + 1] meet the weight and bias of
// expert e.
struct GemmParams {
  const uint8_t* x;       // [m, k] E4M3, unit stride along k
  const uint8_t* weight;  // packed, see layout/int4_tile.h; with experts, one after the other
  const float* x_scale;   // [m]
  // [ceil(k / s), x_sums_pitch], s = min(group size, 128, k): sums of x over s columns; null,
  // unless there are zero points and it is known
  const float* x_sums;
  int64_t m, n, k;
  int64_t x_stride;      // elements between rows of x
  int64_t x_sums_pitch;  // m rounded up to a multiple of kSumsAlignment
  int groups_per_tile;   // 1, 2 or 4
  bool zero_points;
  const void* expert_offsets;  // null for one weight; [experts + 1] int32_t, or int64_t if wide
  bool wide_offsets;
  int64_t experts;
  bool prefetch_weight;  // the launch before this one on the stream does not write the weight
  Epilogue epilogue;

  // On the CPU.
  int64_t expert_offset(int64_t expert) const {
    return wide_offsets ? static_cast<const int64_t*>(expert_offsets)[expert]
                        : static_cast<const int32_t*>(expert_offsets)[expert];
  }
};
constexpr int kMaxExperts = 512;

// What the quantiser makes of a row before it quantises it.
enum class RowInput : int {
  kPlain,    // v = x
  kRmsNorm,  // h = x + residual, v = h / sqrt(mean(h^2) + eps) * weight
  kSiluMul   // v = silu(gate) * up
};

// codes[r, k] = E4M3(v[r, k] / scale[r]), scale[r] = max_k |v[r, k]| / 448
struct QuantizeParams {
  const void* x;   // [rows, k] of x_type, unit stride along k; kSiluMul: [rows, 2 k]
  uint8_t* codes;  // [rows, k], contiguous
  float* scale;    // [rows]
  float* sums;     // null, or as in GroupSumsParams, with pitch and group_log2
  int64_t rows, k;
  int64_t x_stride;  // elements between rows of x
  int64_t pitch;
  int group_log2;
  int row_warps;  // row_warps(k)
  FloatType x_type;
  RowInput input;
  // kRmsNorm
  const void* weight;    // [k] of weight_type
  const void* residual;  // null, or [rows, k] of x_type, unit stride along k
  void* new_residual;    // [rows, k] of x_type, contiguous: h
  int64_t residual_stride;
  FloatType weight_type;  // x_type or kFloat32
  float eps;
  // kSiluMul
  bool interleaved;  // x[r, 2 k], x[r, 2 k + 1] = gate, up; else gate = x[r, k], up = x[r, K + k]
};

// Warps that share a row: about 1024 columns each. Part of the definition of sums over a row:
// thread t of them adds up every column c with c / 8 % threads = t.
constexpr int kRowRun = 8;  // neighbouring columns of a thread
constexpr int row_warps(int64_t k) {
  int warps = 1;
  while (warps < 16 && warps * 1024 < k) warps *= 2;
  return warps;
}

// sums[g, r] = sum of the values of x[r, k] over the columns k of group g; 0 in the padding
struct GroupSumsParams {
  const uint8_t* x;  // [rows, k] E4M3, unit stride along k
  float* sums;       // [ceil(k / group), pitch], contiguous
  int64_t rows, k;   // k is a multiple of 32
  int64_t x_stride;  // elements between rows of x
  int64_t pitch;     // rows rounded up to a multiple of kSumsAlignment
  int group_log2;    // 5, 6 or 7: groups of 32, 64 or 128 columns
};
constexpr int kSumsAlignment = 4;  // tokens

}  // namespace wlib::int4fp8
