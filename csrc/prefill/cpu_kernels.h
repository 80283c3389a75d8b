// The inner loops of attention on the CPU, compiled once per instruction set (cmake/Cpu.cmake).
#pragma once

#include "wlib/layout/int4_kv.h"

namespace wlib::prefill {

constexpr int kBlock = int4kv::kBlockTokens;  // keys per step
constexpr int kMaxRows = 64;                  // queries per step

// A row's running state while it goes over the keys.
struct RowState {
  float largest, sum;  // of the scores so far, and of their exponentials relative to it
};

struct CpuKernels {
  // A block's keys as floats, channel by channel: out[head_dim][64].
  void (*unpack_keys)(const uint8_t* run, const float* scale, int head_dim, float* out);
  // A block's values as floats, token by token: out[64][head_dim].
  void (*unpack_values)(const uint8_t* run, const float* scale, int head_dim, float* out);
  // scores[rows][64] = q[rows][head_dim] * keys[head_dim][64]
  void (*multiply_keys)(const float* q, const float* keys, int rows, int head_dim, float* scores);
  // Scores -> probabilities relative to the row's new largest score, which the state and out[rows]
  // [head_dim] follow. Keys outside of [begin, end) of a row have probability 0.
  void (*softmax)(float* scores, const int* begin, const int* end, int rows, int head_dim,
                  RowState* state, float* out);
  // out[rows][head_dim] += p[rows][64] * values[64][head_dim]
  void (*add_values)(const float* p, const float* values, int rows, int head_dim, float* out);
};

const CpuKernels& cpu_kernels();  // the best set this processor has

}  // namespace wlib::prefill
