// The order in which Blackwell's block-scaled MMAs (and cuBLAS) read scales: atoms of 128 rows x 4
// scales in 512 bytes, atoms along a row of scales first. Rows are padded to 128, scales to 4.
#pragma once

#include "wlib/platform.h"

namespace wlib::fp4 {

constexpr int kScaleAtomRows = 128;
constexpr int kScaleAtomColumns = 4;

WLIB_HOST_DEVICE constexpr int64_t padded_scale_rows(int64_t rows) {
  return (rows + kScaleAtomRows - 1) / kScaleAtomRows * kScaleAtomRows;
}
WLIB_HOST_DEVICE constexpr int64_t padded_scale_columns(int64_t scales) {
  return (scales + kScaleAtomColumns - 1) / kScaleAtomColumns * kScaleAtomColumns;
}
// Byte of the scale of a row; `scales` is how many a row has.
WLIB_HOST_DEVICE constexpr int64_t swizzled_scale(int64_t row, int64_t scale, int64_t scales) {
  const int64_t atoms = padded_scale_columns(scales) / kScaleAtomColumns;
  const int64_t atom = row / kScaleAtomRows * atoms + scale / kScaleAtomColumns;
  return atom * 512 + row % 32 * 16 + row % kScaleAtomRows / 32 * 4 + scale % kScaleAtomColumns;
}

}  // namespace wlib::fp4
