// Per-token FP8 quantisation in one pass over memory: scale = absmax / 448, codes = E4M3(v /
// scale), and the group sums if asked; v is what a source (sm90_quantize_rows.h) makes of the row.
//
// A row belongs to 1 to 16 warps, whose threads hold their values in shared memory until the row's
// maximum is known; only rows that do not fit there are read again. Eight warps or more make a CTA,
// so that short rows share one. Every sum is made in an order that depends on nothing but the row's
// length.
#pragma once

#include "int4fp8/sm90_group_sums.h"
#include "int4fp8/sm90_quantize_rows.h"
#include "wlib/numerics/quotient.h"
#include "wlib/params/int4fp8.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/sync.h"

namespace wlib::int4fp8 {

constexpr int kQuantizeWarps = 8;  // of a CTA, unless a row needs more
constexpr int kQuantizeMaxThreads = 512;
constexpr int kQuantizeMaxSmem = 227 * 1024;

constexpr int quantize_cta_warps(int row_warps) {
  return row_warps > kQuantizeWarps ? row_warps : kQuantizeWarps;
}
constexpr int64_t quantize_ctas(const QuantizeParams& p) {
  const int rows = quantize_cta_warps(p.row_warps) / p.row_warps;
  return ((p.sums ? p.pitch : p.rows) + rows - 1) / rows;
}

struct QuantizeSmem {
  alignas(16) float squares[32];  // by warp
  float magnitudes[32];
  // Then, if the rows fit: uint4 [runs][units of 16 bytes in a run][threads].
  WLIB_DEVICE uint4* held() { return reinterpret_cast<uint4*>(this + 1); }
};

// Which row a thread works on, and which columns of it.
struct RowPart {
  int64_t row;
  int thread, threads;  // among those of the row
  int columns;          // of the row; 0 if there is no such row
  int runs;             // of eight columns, of every thread

  WLIB_DEVICE explicit RowPart(const QuantizeParams& p) {
    const int warp = sm90::thread_index() / sm90::kWarpThreads;
    const int rows = quantize_cta_warps(p.row_warps) / p.row_warps;
    row = int64_t(sm90::block_index_x()) * rows + warp / p.row_warps;
    threads = p.row_warps * sm90::kWarpThreads;
    thread = sm90::thread_index() % threads;
    columns = row < p.rows ? int(p.k) : 0;
    runs = (int(p.k) + threads * kRowRun - 1) / (threads * kRowRun);
  }
  WLIB_DEVICE int first(int run) const { return (run * threads + thread) * kRowRun; }
  WLIB_DEVICE int count(int first) const {  // of the run's columns; may be negative
    return columns - first < kRowRun ? columns - first : kRowRun;
  }
};

// op over the threads of the row, by halves; the same bits in each of them.
template <class Op>
WLIB_DEVICE float over_row(const RowPart& part, float (&by_warp)[32], float value, Op op) {
  WLIB_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2)
    value = op(value, sm90::warp_shuffle_xor(value, lanes));
  const int warps = part.threads / sm90::kWarpThreads;
  if (warps == 1) return value;
  const int warp = sm90::thread_index() / sm90::kWarpThreads, lane = sm90::lane_index();
  if (lane == 0) by_warp[warp] = value;
  sm90::block_sync();
  value = by_warp[warp / warps * warps + lane % warps];
  for (int lanes = warps / 2; lanes > 0; lanes /= 2)
    value = op(value, sm90::warp_shuffle_xor(value, lanes));
  return value;
}

template <class Source>
constexpr int quantize_smem(const QuantizeParams& p) {
  const int64_t columns = int64_t(p.row_warps) * sm90::kWarpThreads * kRowRun;
  const int64_t row = (p.k + columns - 1) / columns * columns * sizeof(typename Source::Held);
  const int64_t bytes =
      sizeof(QuantizeSmem) + row * (quantize_cta_warps(p.row_warps) / p.row_warps);
  return bytes <= kQuantizeMaxSmem ? int(bytes) : int(sizeof(QuantizeSmem));
}

// The row, run by run: first from global memory, later from shared memory if it fits.
template <class Source>
class RowValues {
  using Raw = typename Source::Raw;
  using HeldRun = Run<typename Source::Held>;
  static constexpr int kUnits = sizeof(HeldRun) / sizeof(uint4);
  static constexpr int kBatch = sizeof(Raw) >= 64 ? 1 : 64 / sizeof(Raw);  // loads in flight

 public:
  WLIB_DEVICE RowValues(const QuantizeParams& p, QuantizeSmem& s, const RowPart& part)
      : part_(part),
        source_(p, part.row),
        held_(quantize_smem<Source>(p) > int(sizeof(QuantizeSmem)) ? s.held() : nullptr),
        threads_(quantize_cta_warps(p.row_warps) * sm90::kWarpThreads) {}

  // Calls f(values) for each of the thread's runs; beyond the row they are 0.
  template <class F>
  WLIB_DEVICE void load(F f) const {
    for (int run = 0; run < part_.runs; run += kBatch) {
      Raw raw[kBatch];
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i) raw[i] = fetch(run + i);
      WLIB_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (run + i >= part_.runs) break;
        float value[kRowRun];
        convert(run + i, raw[i], value);
        if (held_) hold(run + i, value);
        f(value);
      }
    }
  }
  // Calls f(first column, values), normalised by `factor` if the source normalises.
  template <class F>
  WLIB_DEVICE void again(float factor, F f) const {
    for (int run = 0; run < part_.runs; ++run) {
      float value[kRowRun];
      if (held_)
        recall(run, value);
      else
        convert(run, fetch(run), value);
      const int first = part_.first(run);
      if constexpr (Source::kNormalises)
        source_.normalise(first, part_.count(first), factor, value);
      f(first, value);
    }
  }

 private:
  WLIB_DEVICE Raw fetch(int run) const {
    const int first = part_.first(run), count = part_.count(first);
    return source_.whole ? source_.template fetch<true>(first, count)
                         : source_.template fetch<false>(first, count);
  }
  WLIB_DEVICE void convert(int run, const Raw& raw, float (&value)[kRowRun]) const {
    const int first = part_.first(run);
    source_.convert(raw, first, part_.count(first), value);
  }
  WLIB_DEVICE uint4& unit(int run, int i) const {
    return held_[(run * kUnits + i) * threads_ + sm90::thread_index()];
  }
  WLIB_DEVICE void hold(int run, const float (&value)[kRowRun]) const {
    HeldRun held;
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) held.value[i] = from_float<typename Source::Held>(value[i]);
    WLIB_UNROLL
    for (int i = 0; i < kUnits; ++i) unit(run, i) = reinterpret_cast<const uint4*>(&held)[i];
  }
  WLIB_DEVICE void recall(int run, float (&value)[kRowRun]) const {
    HeldRun held;
    WLIB_UNROLL
    for (int i = 0; i < kUnits; ++i) reinterpret_cast<uint4*>(&held)[i] = unit(run, i);
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) value[i] = as_float(held.value[i]);
  }

  const RowPart& part_;
  const Source source_;
  uint4* held_;  // null: the row does not fit
  int threads_;  // of the CTA
};

WLIB_DEVICE void store_codes(uint8_t* to, int count, bool whole, uint2 codes) {
  if (whole) {
    if (count > 0) *reinterpret_cast<uint2*>(to) = codes;
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) {
      if (i < count) to[i] = uint8_t((i < 4 ? codes.x : codes.y) >> i % 4 * 8);
    }
  }
}

// Codes, and what the run adds to its group's sum.
WLIB_DEVICE void store_run_codes(const QuantizeParams& p, const RowPart& part, int first,
                                 uint2 codes) {
  const bool whole = p.k % kRowRun == 0;  // the codes themselves are aligned
  store_codes(p.codes + part.row * p.k + first, part.count(first), whole, codes);
  if (!p.sums) return;
  const float sum = group_sum(sum_of_codes(codes.x) + sum_of_codes(codes.y), kRowRun, p.group_log2);
  const bool leads = (first & ((1 << p.group_log2) - 1)) == 0;
  if (leads && first < p.k && part.row < p.pitch)
    p.sums[(first >> p.group_log2) * p.pitch + part.row] = sum;
}

WLIB_DEVICE float larger(const float (&value)[kRowRun], float than) {
  WLIB_UNROLL
  for (float v : value) than = sm90::max_or_nan(than, fabsf(v));
  return than;
}

// 1 / sqrt(mean(h^2) + eps), of a row that is normalised.
template <class Source>
WLIB_DEVICE float load_and_measure(const QuantizeParams& p, QuantizeSmem& s, const RowPart& part,
                                   const RowValues<Source>& values) {
  float squares[kRowRun] = {};
  values.load([&](const float(&value)[kRowRun]) {
    WLIB_UNROLL
    for (int i = 0; i < kRowRun; ++i) squares[i] = fmaf(value[i], value[i], squares[i]);
  });
  WLIB_UNROLL
  for (int half = kRowRun / 2; half > 0; half /= 2) {
    WLIB_UNROLL
    for (int i = 0; i < half; ++i) squares[i] += squares[i + half];
  }
  const auto add = [](float a, float b) { return a + b; };
  return 1.0f / sqrtf(over_row(part, s.squares, squares[0], add) / float(p.k) + p.eps);
}

template <class Source>
WLIB_KERNEL_RESIDENT(kQuantizeMaxThreads, 2)
quantize_kernel(WLIB_GRID_CONSTANT QuantizeParams p) {
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
  auto& s = sm90::dynamic_smem<QuantizeSmem>();
  const RowPart part(p);
  const RowValues<Source> values(p, s, part);
  float factor = 1, magnitude = 0;
  if constexpr (Source::kNormalises) {
    factor = load_and_measure(p, s, part, values);
    values.again(factor,
                 [&](int, const float(&value)[kRowRun]) { magnitude = larger(value, magnitude); });
  } else {
    values.load([&](const float(&value)[kRowRun]) { magnitude = larger(value, magnitude); });
  }
  const auto larger_of_two = [](float a, float b) { return sm90::max_or_nan(a, b); };
  const float scale = over_row(part, s.magnitudes, magnitude, larger_of_two) / kE4M3Max;
  if (part.thread == 0 && part.columns > 0) p.scale[part.row] = scale;

  const Quotient quotient(scale);
  values.again(factor, [&](int first, const float(&v)[kRowRun]) {
    uint2 codes{
        sm90::float_to_e4m3x4(quotient(v[0]), quotient(v[1]), quotient(v[2]), quotient(v[3])),
        sm90::float_to_e4m3x4(quotient(v[4]), quotient(v[5]), quotient(v[6]), quotient(v[7]))};
    if (scale == 0) codes = uint2{0, 0};
    store_run_codes(p, part, first, codes);
  });
}

struct QuantizeLaunch {
  void (*kernel)(QuantizeParams);
  int64_t ctas;
  int threads, smem_bytes;
};

template <template <class> class Row>
QuantizeLaunch quantize_launch_of(const QuantizeParams& p) {
  const auto launch = [&]<class Source>() {
    return QuantizeLaunch{quantize_kernel<Source>, quantize_ctas(p),
                          quantize_cta_warps(p.row_warps) * sm90::kWarpThreads,
                          quantize_smem<Source>(p)};
  };
  switch (p.x_type) {
    case FloatType::kFloat32: return launch.template operator()<Row<float>>();
    case FloatType::kBFloat16: return launch.template operator()<Row<__nv_bfloat16>>();
    default: return launch.template operator()<Row<__half>>();
  }
}
inline QuantizeLaunch quantize_launch(const QuantizeParams& p) {
  switch (p.input) {
    case RowInput::kPlain: return quantize_launch_of<PlainRow>(p);
    case RowInput::kRmsNorm: return quantize_launch_of<RmsNormRow>(p);
    default: return quantize_launch_of<SiluMulRow>(p);
  }
}

}  // namespace wlib::int4fp8
