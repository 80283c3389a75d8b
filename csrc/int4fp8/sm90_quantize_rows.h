// What the quantiser's threads load, run by run, and what they make of it: a plain row, one that is
// normalised, or SiLU and a product.
//
// A source has fetch(), which only loads, and convert(), which makes values of a run and may store;
// apart, so that the loads of several runs are in flight before the first is used. Held is a type
// that holds the values exactly.
#pragma once

#include "wlib/numerics/silu.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/divide.h"
#include "wlib/sm90/float_types.h"

namespace wlib::int4fp8 {

using sm90::as_float;
using sm90::from_float;

template <class T>
struct alignas(16) Run {
  T value[kRowRun];
};

// Whole: the row is a multiple of a run and everything is aligned, so that a run is there or not.
template <bool kWhole, class T>
WLIB_DEVICE Run<T> load_run(const T* from, int count) {
  Run<T> run{};
  if constexpr (kWhole) {
    if (count > 0) run = *reinterpret_cast<const Run<T>*>(from);
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) {
      if (i < count) run.value[i] = from[i];
    }
  }
  return run;
}
template <class T>
WLIB_DEVICE void store_run(T* to, int count, bool whole, const Run<T>& run) {
  if (whole) {
    if (count > 0) *reinterpret_cast<Run<T>*>(to) = run;
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) {
      if (i < count) to[i] = run.value[i];
    }
  }
}
WLIB_DEVICE bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T>
struct PlainRow {
  static constexpr bool kNormalises = false;
  using Held = T;
  struct Raw {
    Run<T> x;
  };
  const T* x;
  bool whole;

  WLIB_DEVICE PlainRow(const QuantizeParams& p, int64_t row)
      : x(static_cast<const T*>(p.x) + row * p.x_stride),
        whole(p.k % kRowRun == 0 && is_aligned(x)) {}
  template <bool kWhole>
  WLIB_DEVICE Raw fetch(int first, int count) const {
    return {load_run<kWhole>(x + first, count)};
  }
  WLIB_DEVICE void convert(const Raw& raw, int, int, float (&value)[kRowRun]) const {
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) value[i] = as_float(raw.x.value[i]);
  }
};

// convert() gives h, the sum with the residual as it is stored; normalise() the rest.
template <class T>
struct RmsNormRow {
  static constexpr bool kNormalises = true;
  using Held = T;
  struct Raw {
    Run<T> x, residual;
  };
  const T *x, *residual;  // residual: or null
  T* new_residual;
  const void* weight;
  bool weight_is_float, whole;

  WLIB_DEVICE RmsNormRow(const QuantizeParams& p, int64_t row)
      : x(static_cast<const T*>(p.x) + row * p.x_stride),
        residual(p.residual ? static_cast<const T*>(p.residual) + row * p.residual_stride
                            : nullptr),
        new_residual(static_cast<T*>(p.new_residual) + row * p.k),
        weight(p.weight),
        weight_is_float(p.weight_type == FloatType::kFloat32),
        whole(p.k % kRowRun == 0 && is_aligned(x) && is_aligned(residual) && is_aligned(weight)) {}
  template <bool kWhole>
  WLIB_DEVICE Raw fetch(int first, int count) const {
    Raw raw{load_run<kWhole>(x + first, count), {}};
    if (residual) raw.residual = load_run<kWhole>(residual + first, count);
    return raw;
  }
  WLIB_DEVICE void convert(const Raw& raw, int first, int count, float (&value)[kRowRun]) const {
    Run<T> sum = raw.x;
    if (residual) {
      WLIB_UNROLL
      for (int i = 0; i < kRowRun; ++i)
        sum.value[i] = from_float<T>(as_float(raw.x.value[i]) + as_float(raw.residual.value[i]));
      store_run(new_residual + first, count, whole, sum);
    }
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) value[i] = as_float(sum.value[i]);
  }
  template <class W>
  WLIB_DEVICE void scale_run(const W* from, int count, float factor,
                             float (&value)[kRowRun]) const {
    const Run<W> w = whole ? load_run<true>(from, count) : load_run<false>(from, count);
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i)  // beyond the row stays 0, even if the factor is Inf
      value[i] = i < count ? value[i] * factor * as_float(w.value[i]) : 0.0f;
  }
  WLIB_DEVICE void normalise(int first, int count, float factor, float (&value)[kRowRun]) const {
    if (weight_is_float)
      scale_run(static_cast<const float*>(weight) + first, count, factor, value);
    else
      scale_run(static_cast<const T*>(weight) + first, count, factor, value);
  }
};

template <class T>
struct SiluMulRow {
  static constexpr bool kNormalises = false;
  using Held = float;
  struct Raw {
    Run<T> gate, up;  // interleaved: the first and the second half of the pairs
  };
  const T *gate, *up;
  bool interleaved, whole;

  WLIB_DEVICE SiluMulRow(const QuantizeParams& p, int64_t row)
      : gate(static_cast<const T*>(p.x) + row * p.x_stride),
        up(gate + p.k),
        interleaved(p.interleaved),
        whole(p.k % kRowRun == 0 && is_aligned(gate) && (interleaved || is_aligned(up))) {}
  template <bool kWhole>
  WLIB_DEVICE Raw fetch(int first, int count) const {
    if (!interleaved)
      return {load_run<kWhole>(gate + first, count), load_run<kWhole>(up + first, count)};
    const T* pairs = gate + int64_t(first) * 2;
    return {load_run<kWhole>(pairs, count * 2),
            load_run<kWhole>(pairs + kRowRun, count * 2 - (kWhole ? 0 : kRowRun))};
  }
  WLIB_DEVICE void convert(Raw raw, int, int, float (&value)[kRowRun]) const {
    if (interleaved) {
      const Raw pairs = raw;
      WLIB_UNROLL
      for (int i = 0; i < kRowRun; ++i) {
        const Run<T>& half = i < kRowRun / 2 ? pairs.gate : pairs.up;
        raw.gate.value[i] = half.value[i * 2 % kRowRun];
        raw.up.value[i] = half.value[i * 2 % kRowRun + 1];
      }
    }
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i)
      value[i] = silu(as_float(raw.gate.value[i]), sm90::divide) * as_float(raw.up.value[i]);
  }
};

}  // namespace wlib::int4fp8
