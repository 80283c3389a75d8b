// The orthonormal Hadamard transform (Sylvester's order) of 16, 32, 64 or 128 values: entries +-1,
// sums in FP32 in the order of the butterfly, then one product with 1 / sqrt(size). A zero is
// positive, as in a sum that begins with 0.
#pragma once

#include "wlib/platform.h"

namespace wlib {

WLIB_HOST_DEVICE constexpr bool is_hadamard_size(int64_t size) {
  return size == 16 || size == 32 || size == 64 || size == 128;
}

// 1 / sqrt(size), rounded to FP32; exact for 16 and 64.
WLIB_HOST_DEVICE constexpr float hadamard_scale(int size) {
  return size == 16   ? 0.25f
         : size == 32 ? 0.17677669529663687f
         : size == 64 ? 0.125f
                      : 0.08838834764831843f;
}

// One stage of the butterfly on N values; a transform of `size` has those of stride 1, 2, 4 .. size
// / 2.
template <int kStride, int N>
WLIB_HOST_DEVICE void hadamard_stage(float (&x)[N]) {
  WLIB_UNROLL
  for (int i = 0; i < N; ++i) {
    if (i & kStride) continue;
    const float a = x[i], b = x[i + kStride];
    x[i] = a + b;
    x[i + kStride] = a - b;
  }
}

}  // namespace wlib
