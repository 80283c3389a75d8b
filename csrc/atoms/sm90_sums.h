// Sums of arrays with a coefficient each, what both directions of the ops on shared atoms are made
// of: out[k][i] = sum_j coef[k, j] * in[j][i]. A thread keeps the sums of kGroup outputs at a time;
// coefficients and inputs come from shared memory if they fit (kResident), else from global memory
// again for every group.
#pragma once

#include "wlib/sm90/runs.h"
#include "wlib/sm90/sync.h"

namespace wlib::atoms {

constexpr int kGroup = 8;
constexpr int kLoadsInFlight = 4;  // runs of a thread

struct alignas(16) Four {
  float value[4];
};

WLIB_HOST_DEVICE constexpr int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

WLIB_DEVICE const void* advance(const void* data, FloatType type, int64_t elements) {
  return static_cast<const char*>(data) + elements * (type == FloatType::kFloat32 ? 4 : 2);
}

// `count` arrays of one type, `elements` apart.
struct Arrays {
  const void* data;
  int64_t count, elements;
  FloatType type;
  WLIB_DEVICE const void* at(int64_t i) const { return advance(data, type, i * elements); }
};

// The coefficients of a row, [outputs, inputs] by their strides.
struct Coefficients {
  const float* data;
  int64_t outputs, inputs, output_stride, input_stride;
  WLIB_DEVICE float at(int64_t k, int64_t j) const {
    return k < outputs ? data[k * output_stride + j * input_stride] : 0.0f;
  }
  WLIB_HOST_DEVICE int64_t groups() const { return ceil_of(outputs, kGroup); }
  WLIB_HOST_DEVICE int64_t staged_floats() const { return groups() * kGroup * inputs; }
};

// Copies them to shared memory as [groups][inputs][kGroup], zero beyond the outputs.
WLIB_DEVICE void stage_coefficients(const Coefficients& c, float* staged, int threads) {
  const int total = int(c.staged_floats());
  for (int i = sm90::thread_index(); i < total; i += threads) {
    const int64_t group = i / kGroup / c.inputs, j = i / kGroup % c.inputs;
    staged[i] = c.at(group * kGroup + i % kGroup, j);
  }
}

// Those of group `group` and input j.
template <bool kResident>
WLIB_DEVICE void group_coefficients(const Coefficients& c, const float* staged, int64_t group,
                                    int64_t j, float (&own)[kGroup]) {
  if constexpr (kResident) {
    const auto* from = reinterpret_cast<const Four*>(staged + (group * c.inputs + j) * kGroup);
    const Four low = from[0], high = from[1];
    WLIB_UNROLL
    for (int k = 0; k < 4; ++k) {
      own[k] = low.value[k];
      own[4 + k] = high.value[k];
    }
  } else {
    WLIB_UNROLL
    for (int k = 0; k < kGroup; ++k) own[k] = c.at(group * kGroup + k, j);
  }
}

// The sums of a group, inputs in order; in(j, values) reads the thread's elements of input j.
template <bool kResident, int kElements, class In>
WLIB_DEVICE void sum_group(const Coefficients& c, const float* staged, int64_t group, In in,
                           float (&sums)[kGroup][kElements]) {
  WLIB_UNROLL
  for (auto& own : sums) {
    WLIB_UNROLL
    for (float& sum : own) sum = 0;
  }
  for (int64_t j = 0; j < c.inputs; ++j) {
    float values[kElements], own[kGroup];
    in(j, values);
    group_coefficients<kResident>(c, staged, group, j, own);
    WLIB_UNROLL
    for (int k = 0; k < kGroup; ++k) {
      WLIB_UNROLL
      for (int i = 0; i < kElements; ++i) sums[k][i] = fmaf(own[k], values[i], sums[k][i]);
    }
  }
}

}  // namespace wlib::atoms
