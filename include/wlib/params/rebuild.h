// What wlib::rebuild hands to its kernels, CPU and CUDA alike. Filled in one place, rebuild.cpp,
// after every argument has been checked.
#pragma once

#include <cstdint>

#include "wlib/params/float_type.h"

namespace wlib::rebuild {

// How a layer's out [rows, columns] follows from w0 (zeros if null) and its operands.
enum class RebuildForm : int {
  kLowRank,      // w0 + scale * A1 B1, ranks A1 [rows, rank1], B1 [rank1, columns]
  kHadamard,     // w0 + scale * (A1 B1) o (A2 B2)
  kKron,         // w0 + scale * A1 (x) B1, B1 [rank1, rank2], A1 [rows / rank1, columns / rank2]
  kBlockAffine,  // w0 + scale * (w0_ij B1_i + B1_i), blocks of rank1 x rank1, B1 [rows / rank1,
                 // ...]
};
constexpr int kRebuildForms = 4;

// Strides count elements.
struct RebuildOperand {
  const void* data;
  int32_t row_stride, column_stride;
};

struct RebuildLayer {
  const void* w0;  // [rows, columns] of w0_type, contiguous, or null
  void* out;       // [rows, columns] of out_type, contiguous; may be w0 but for kBlockAffine
  RebuildOperand a1, b1, a2, b2;  // of operand_type
  double scale;
  int32_t rows, columns, rank1, rank2;
  RebuildForm form : 8;
  FloatType w0_type : 8, out_type : 8, operand_type : 8;
  int32_t number;      // in the call, for the keys of stochastic rounding
  int32_t first_tile;  // of the CUDA kernel's tiles, numbered over all layers of a launch
};

// Stochastic rounding to BF16 where `stochastic`, keyed (seed, number of the layer, element).
struct Rounding {
  uint64_t seed;
  bool stochastic;
};

}  // namespace wlib::rebuild
