// One head of a token, as the quantisers of queries, keys and values take it: head_dim / 8 threads
// of a warp, each with eight channels in two runs of four.
#pragma once

#include <cmath>

#include "wlib/params/prefill.h"
#include "wlib/sm90/bits.h"
#include "wlib/sm90/float_types.h"
#include "wlib/sm90/sync.h"

namespace wlib::prefill {

constexpr int kRunChannels = 4;
constexpr int kHeadChannels = 2 * kRunChannels;  // of a head, per thread

template <int kHeadDim>
struct HeadThreads {
  static constexpr int kThreads = kHeadDim / kHeadChannels;     // per head: 8, 16 or 32
  static constexpr int kHeads = sm90::kWarpThreads / kThreads;  // per warp
  static WLIB_DEVICE int thread() { return sm90::lane_index() % kThreads; }
  static WLIB_DEVICE int head_of_warp() { return sm90::lane_index() / kThreads; }
};

template <class T>
struct alignas(kRunChannels * sizeof(T)) Run {
  T value[kRunChannels];
};

// Four neighbouring channels. kWhole: the address is a multiple of the run's size.
template <bool kWhole, class T>
WLIB_DEVICE Run<T> load_run(const T* from) {
  Run<T> run;
  if constexpr (kWhole) {
    run = *reinterpret_cast<const Run<T>*>(from);
  } else {
    WLIB_UNROLL
    for (int i = 0; i < kRunChannels; ++i) run.value[i] = from[i];
  }
  return run;
}
WLIB_DEVICE float4 load_floats(const float* from) { return *reinterpret_cast<const float4*>(from); }

// Whether each run of a tensor [tokens, heads, head_dim] with these strides starts at a multiple of
// its size.
template <class T>
WLIB_DEVICE bool runs_are_whole(const void* base, const int64_t (&stride)[2]) {
  return reinterpret_cast<uintptr_t>(base) % sizeof(Run<T>) == 0 &&
         (stride[0] | stride[1]) % kRunChannels == 0;
}

// Four channels from `channel` on and the four `apart` from them, of x [tokens, heads, head_dim].
template <class T>
WLIB_DEVICE void load_channels(const void* base, const int64_t (&stride)[2], int64_t token,
                               int head, int channel, int apart, float (&x)[kHeadChannels]) {
  const T* from = static_cast<const T*>(base) + token * stride[0] + head * stride[1] + channel;
  const bool whole = runs_are_whole<T>(base, stride);
  const Run<T> first = whole ? load_run<true>(from) : load_run<false>(from);
  const Run<T> second = whole ? load_run<true>(from + apart) : load_run<false>(from + apart);
  WLIB_UNROLL
  for (int i = 0; i < kRunChannels; ++i) {
    x[i] = sm90::as_float(first.value[i]);
    x[kRunChannels + i] = sm90::as_float(second.value[i]);
  }
}

// max |x| over the threads of a head, the same bits in each of them; NaN beats every number.
template <int kHeadDim>
WLIB_DEVICE float largest_of_head(const float (&x)[kHeadChannels]) {
  float largest = 0;
  WLIB_UNROLL
  for (float value : x) largest = sm90::max_or_nan(largest, fabsf(value));
  WLIB_UNROLL
  for (int lanes = HeadThreads<kHeadDim>::kThreads / 2; lanes > 0; lanes /= 2)
    largest = sm90::max_or_nan(largest, sm90::warp_shuffle_xor(largest, lanes));
  return largest;
}

}  // namespace wlib::prefill
