// The end of a GEMM: bias, activation, residual and the one rounding to the output type.
//
// A lane holds two neighbouring rows of the weight, n (even) and n + 1, for one token: two
// neighbouring outputs, or a gate and what it lets through. Which epilogue it is, is the same for
// the whole grid, so that its branches never split a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "int4fp8/sm90_params.h"
#include "wlib/sm90/convert.h"

namespace wlib::int4fp8 {

template <class Pair, class T>
WLIB_DEVICE Pair load_values(const T* values, bool both, bool aligned) {
  if (both && aligned) return *reinterpret_cast<const Pair*>(values);
  return {values[0], both ? values[1] : T{}};
}

WLIB_DEVICE float2 load_floats(const void* from, FloatType type, int64_t at, bool both,
                               bool aligned) {
  if (type == FloatType::kFloat32)
    return load_values<float2>(static_cast<const float*>(from) + at, both, aligned);
  const auto bits = load_values<ushort2>(static_cast<const uint16_t*>(from) + at, both, aligned);
  if (type == FloatType::kBFloat16)
    return {__bfloat162float(__ushort_as_bfloat16(bits.x)),
            __bfloat162float(__ushort_as_bfloat16(bits.y))};
  return {__half2float(__ushort_as_half(bits.x)), __half2float(__ushort_as_half(bits.y))};
}

template <class T, class Pair>
WLIB_DEVICE void store_values(void* to, int64_t at, bool both, bool aligned, T first, T second) {
  T* values = static_cast<T*>(to) + at;
  if (both && aligned) {
    *reinterpret_cast<Pair*>(values) = Pair{first, second};
  } else {
    values[0] = first;
    if (both) values[1] = second;
  }
}

// The outputs of rows n and n + 1: one if the row ends here or the two are gate and up.
struct OutputPair {
  int64_t at;    // of the first one in y and in the residual
  bool both;     // whether there are two
  bool aligned;  // whether two lie at a multiple of two; the tensors start at 16 bytes

  WLIB_DEVICE OutputPair(const KernelParams& p, int m, int n) {
    const bool gated = p.epilogue.activation == Activation::kSiluMul;
    at = int64_t(m) * p.columns + (gated ? n / 2 : n);
    both = !gated && n + 1 < p.n;
    aligned = p.columns % 2 == 0;
  }
};

WLIB_DEVICE float2 load_bias(const KernelParams& p, int expert, int n) {
  const Epilogue& e = p.epilogue;
  if (!e.bias) return {0, 0};
  const int64_t at = int64_t(expert) * p.n + n;
  return load_floats(e.bias, e.bias_type, at, n + 1 < p.n, /*aligned=*/false);
}

// Apart from store_pair, so that a kernel can have several on their way.
WLIB_DEVICE float2 load_residual(const KernelParams& p, int m, int n) {
  const Epilogue& e = p.epilogue;
  if (!e.residual) return {0, 0};
  const OutputPair to(p, m, n);
  return load_floats(e.residual, e.residual_type, to.at, to.both, to.aligned);
}

WLIB_DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

// Stores what rows n and n + 1 give for token m; v0 and v1 hold scaled sums plus bias.
WLIB_DEVICE void store_pair(const KernelParams& p, int m, int n, float v0, float v1,
                            float2 residual) {
  const Epilogue& e = p.epilogue;
  const auto [at, both, aligned] = OutputPair(p, m, n);
  if (e.activation == Activation::kSiluMul) v0 = silu(v0) * v1;
  v0 += residual.x;
  v1 += residual.y;
  switch (e.out_type) {
    case FloatType::kFloat32: return store_values<float, float2>(e.y, at, both, aligned, v0, v1);
    case FloatType::kBFloat16:
      return store_values<__nv_bfloat16, __nv_bfloat162>(
          e.y, at, both, aligned, __float2bfloat16_rn(v0), __float2bfloat16_rn(v1));
    case FloatType::kFloat16:
      return store_values<__half, __half2>(e.y, at, both, aligned, __float2half_rn(v0),
                                           __float2half_rn(v1));
    case FloatType::kE4M3: {
      const float scale = *e.out_scale;
      const uint16_t codes = sm90::float2_to_e4m3x2({v0 / scale, v1 / scale});
      return store_values<uint8_t, uchar2>(e.y, at, both, aligned, uint8_t(codes),
                                           uint8_t(codes >> 8));
    }
    default: return;  // no other type is accepted
  }
}

}  // namespace wlib::int4fp8
