// The inner loops of the CPU kernels, compiled once per instruction set (cmake/Cpu.cmake). One row
// block is 64 rows of the weight.
#pragma once

#include <array>

#include "wlib/layout/int4_tile.h"
#include "wlib/numerics/e4m3.h"

namespace wlib::int4fp8 {

inline constexpr auto kE4M3Table = [] {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) table[i] = e4m3_to_float(uint8_t(i));
  return table;
}();

// A token's activations for one tile: integers 2^9 * x in three digits to the base 128, in the
// order in which a tile stores its codes, half by half.
struct alignas(64) TileActivations {
  int8_t digits[2][3][64];
  int32_t offsets[2][16];  // -8 * x, summed as codes times digits are: products are with code + 8
};

struct CpuKernels {
  const char* isa;
  // x[k] E4M3 -> tiles[k_tiles]; what sums over x start from: NaN if x has one, otherwise 0.
  float (*gather_activations)(const uint8_t* x, int64_t k, int64_t k_tiles, int4::Layout layout,
                              TileActivations* tiles);
  // out[m, 64] = scale * sum(x * (code - zero)), from gathered activations [m, k_tiles] and starts
  // [m].
  void (*multiply_block)(const uint8_t* block, int64_t k_tiles, int4::Layout layout,
                         const TileActivations* x, const float* starts, int64_t m, float* out);
  // out[rows, k] = scale * (code - zero)
  void (*dequantize_block)(const uint8_t* block, int64_t k_tiles, int4::Layout layout, int rows,
                           int64_t k, float* out);
  void (*expand)(const uint8_t* codes, int64_t count, float* values);  // E4M3 -> float
  float (*quantize_row)(const float* x, int64_t k, uint8_t* codes);    // returns the scale
  // In place: h -> h / sqrt(mean(h^2) + eps) * weight
  void (*rms_norm_row)(float* h, const float* weight, int64_t k, float eps);
  void (*silu_mul_row)(const float* gate, const float* up, int64_t k, float* v);
  // sums[g * pitch] = sum of the values of group g of a row of codes
  void (*group_sums_row)(const uint8_t* codes, int64_t k, int group_log2, float* sums,
                         int64_t pitch);
};

const CpuKernels& cpu_kernels();  // the best set this processor has

}  // namespace wlib::int4fp8
