// What the ops of family fp4 hand to their kernels, CPU and CUDA alike. Filled in one place,
// quantize.cpp and matmul.cpp, after every argument has been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wlib/layout/scales_128x4.h"
#include "wlib/numerics/fp4_carrier.h"
#include "wlib/numerics/fp4_rounding.h"
#include "wlib/numerics/fp4_scale.h"
#include "wlib/params/float_type.h"

namespace wlib::fp4 {

// A matrix [rows, columns] in packed FP4. codes: two per byte, low nibble = even column; scales of
// blocks along a row, row-major; of mxfp4 E8M0, of nvfp4 E4M3 times one global scale.
struct Packed {
  const uint8_t* codes;       // [rows, columns / 2]
  const uint8_t* scales;      // [rows, columns / block], or swizzled: MatmulMode::kBlockScaled
  const float* global_scale;  // scalar, or null for mxfp4
};

// Where the values come from: x of x_type with unit stride along a row, or packed codes.
struct Source {
  int64_t rows, columns;
  const void* x;  // null: packed
  FloatType x_type;
  int64_t x_stride;  // elements between rows of x
  Packed packed;
};

// What becomes of them; any pointer may be null: not wanted. On CUDA codes and scales are wanted
// always: carriers are made of them.
struct Outputs {
  uint8_t* codes;    // [rows, columns / 2]
  uint8_t* scales;   // [rows, columns / block], or swizzled (layout/scales_128x4.h)
  uint8_t* carrier;  // [rows, columns] FP8
  float* row_scale;  // [rows], what the carrier's values are to be multiplied with
  uint8_t* mask;     // [rows, columns / 8], bit i of byte j: |value / scale| < 6 at 8 j + i
};

struct QuantizeParams {
  Source source;
  bool transpose;  // outputs are of the transposed source
  Outputs out;
  ScaleRule rule;
  Carrier carrier;
  int window;           // binades that the scales of a row may span; 0: any
  int hadamard;         // size of the rotated blocks; 0: none
  const int8_t* signs;  // [hadamard] or null; negative ones flip a value before the rotation
  bool swizzle;
  float* global_scale;         // scalar of nvfp4: written, unless
  bool global_scale_is_given;  // then read
  bool square;                 // nvfp4: a scale is that of 16 x 16 values
  Rounding rounding;
  const int64_t* seed;  // [1] or, with the step, [2]; null for kNearest
  bool seed_has_step;
  uint32_t offset;
  // CUDA, if wants_largest(): what each tile has found. mxfp4: [tiles along a row, rows] largest
  // scales; nvfp4: [tiles] bits of the largest magnitude.
  uint32_t* tile_largest;
  uint32_t* row_largest;  // CUDA, mxfp4: [rows] the largest scale of each

  WLIB_HOST_DEVICE int64_t rows() const { return transpose ? source.columns : source.rows; }
  WLIB_HOST_DEVICE int64_t columns() const { return transpose ? source.rows : source.columns; }
  WLIB_HOST_DEVICE int block() const { return is_mx(rule) ? kMxBlock : kNvBlock; }
  // Bytes of all scales.
  WLIB_HOST_DEVICE int64_t scales() const {
    const int64_t along = columns() / block();
    return swizzle ? padded_scale_rows(rows()) * padded_scale_columns(along) : rows() * along;
  }
  // Whether the scales depend on more than their block: on the row's largest scale, or on the
  // tensor's largest magnitude.
  WLIB_HOST_DEVICE bool wants_largest() const {
    return is_mx(rule) ? window > 0 : !global_scale_is_given;
  }
  // Only where the seed can be read: on its device.
  WLIB_HOST_DEVICE RoundingKey key() const {
    if (!seed) return {};
    return {uint64_t(seed[0]), seed_has_step ? uint32_t(seed[1]) : 0,
            rounding_stream(offset, transpose)};
  }
};

// Tiles of the CUDA quantiser, in each direction.
constexpr int kQuantizeTile = 128;
WLIB_HOST_DEVICE constexpr int64_t quantize_tiles(int64_t values) {
  return (values + kQuantizeTile - 1) / kQuantizeTile;
}

// signs[i] = -1 or 1, bit i of the draw for (seed, step) and this offset.
struct SignsParams {
  const int64_t* seed;
  bool seed_has_step;
  uint32_t offset;
  int size;
  int8_t* signs;  // [size]
};
// Only where the seed can be read.
WLIB_HOST_DEVICE int8_t sign_of(const SignsParams& p, int i) {
  const uint32_t step = p.seed_has_step ? uint32_t(p.seed[1]) : 0;
  const Draw d = draw(uint64_t(p.seed[0]), step, kSignStream | p.offset, 0);
  return d.word[i / kSignElements] >> i % kSignElements & 1 ? -1 : 1;
}

// y[r, :] = x[r, :] rotated in blocks of `size`: signs before the rotation, or after its inverse.
struct HadamardParams {
  const void* x;  // [rows, columns] of type, unit stride along a row
  void* y;        // [rows, columns] of type, contiguous
  int64_t rows, columns, x_stride;
  int size;
  const int8_t* signs;  // [size] or null
  bool inverse;
  FloatType type;
};

// y[m, n] = alpha * sum_k a[m, k] * b[n, k]
struct Operand {
  int64_t rows;
  Packed packed;           // or
  const uint8_t* carrier;  // [rows, k] FP8, and
  const float* row_scale;  // [rows]
  Carrier carrier_type;    // kNone: packed
};
enum class MatmulMode : int { kFold8, kBF16, kExact32, kBlockScaled };
struct MatmulParams {
  Operand a, b;
  int64_t k;
  MatmulMode mode;
  float alpha;
  void* y;  // [m, n] of out_type, contiguous
  FloatType out_type;
};

}  // namespace wlib::fp4
