// The inner loops of the CPU kernels, on one row of floats; compiled once per instruction set
// (cmake/Cpu.cmake).
#pragma once

#include "wlib/params/fp4.h"

namespace wlib::fp4 {

// A quantised row on its way out; null pointers: not wanted.
struct RowOutputs {
  uint8_t* codes;
  uint8_t* scales;  // in order
  uint8_t* carrier;
  float* row_scale;
  uint8_t* mask;
};

// What the row's values are quantised with.
struct RowInputs {
  const QuantizeParams& p;
  int64_t row;
  float global_scale;
  const uint32_t* maxima;  // per block of 16; null: the block's own
};

struct CpuRows {
  // Signs and rotation, in place; signs may be null.
  void (*rotate)(float* x, int64_t count, int size, const float* signs);
  // Largest magnitude in blocks without NaN and Inf.
  float (*largest)(const float* x, int64_t count);
  // Bits of the largest magnitude in each block of 16.
  void (*block_maxima)(const float* x, int64_t count, uint32_t* bits);
  void (*quantize)(const float* x, const RowInputs& in, const RowOutputs& out);
  // Values of a packed row without its global scale.
  void (*expand_mx)(const uint8_t* codes, const uint8_t* scales, int64_t count, float* values);
  void (*expand_nv)(const uint8_t* codes, const uint8_t* scales, int64_t count, float* values);
  void (*expand_carrier)(const uint8_t* bytes, Carrier type, int64_t count, float* values);
  // Sum over blocks of 32 of 2^(ea + eb) * (sum of products of codes): the sums are exact integers.
  float (*exact_dot)(const uint8_t* a, const uint8_t* a_scales, const uint8_t* b,
                     const uint8_t* b_scales, int64_t count);
};

const CpuRows& cpu_rows();  // the best set this processor has

}  // namespace wlib::fp4
