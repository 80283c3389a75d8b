// Queries to E4M3 in one pass: RoPE, division by the keys' smoothing factors, scale = absmax / 448.
//
// A warp takes 32 / (head_dim / 8) heads at a time. A thread has four channels of the first half of
// a head and the four of the second half that they rotate with, so that nothing is exchanged but
// the maximum.
#pragma once

#include "prefill/sm90_heads.h"
#include "wlib/numerics/quotient.h"
#include "wlib/numerics/rope.h"
#include "wlib/sm90/convert.h"

namespace wlib::prefill {

constexpr int kQueryThreads = 256;

template <int kHeadDim>
constexpr int64_t query_ctas(const QuantizeQueriesParams& p) {
  const int rows = kQueryThreads / HeadThreads<kHeadDim>::kThreads;
  return (p.tokens * p.heads + rows - 1) / rows;
}

WLIB_DEVICE void rotate_pairs(const float4& c, const float4& s, float (&x)[kHeadChannels]) {
  const float cos[] = {c.x, c.y, c.z, c.w}, sin[] = {s.x, s.y, s.z, s.w};
  WLIB_UNROLL
  for (int i = 0; i < kRunChannels; ++i) {
    const float a = x[i], b = x[kRunChannels + i];
    x[i] = rotate(a, -b, cos[i], sin[i]);
    x[kRunChannels + i] = rotate(b, a, cos[i], sin[i]);
  }
}

WLIB_DEVICE void divide_run(const float4& by, float* x) {
  x[0] /= by.x;
  x[1] /= by.y;
  x[2] /= by.z;
  x[3] /= by.w;
}

template <class T, int kHeadDim>
WLIB_KERNEL_RESIDENT(kQueryThreads, 4)
quantize_queries_kernel(WLIB_GRID_CONSTANT QuantizeQueriesParams p) {
  using Threads = HeadThreads<kHeadDim>;
  constexpr int kHalf = kHeadDim / 2;
  const int64_t row = int64_t(sm90::block_index_x()) * (kQueryThreads / Threads::kThreads) +
                      sm90::thread_index() / Threads::kThreads;
  const bool exists = row < p.tokens * p.heads;  // the others keep their lanes company
  const int64_t token = exists ? row / p.heads : 0;
  const int head = exists ? int(row % p.heads) : 0;
  const int channel = Threads::thread() * kRunChannels;

  float x[kHeadChannels];
  load_channels<T>(p.q, p.stride, token, head, channel, kHalf, x);
  if (p.cos) {
    const int64_t at = token * kHalf + channel;
    rotate_pairs(load_floats(p.cos + at), load_floats(p.sin + at), x);
  }
  if (p.smooth) {
    const float* factors = p.smooth + (head / (p.heads / p.kv_heads)) * kHeadDim + channel;
    divide_run(load_floats(factors), x);
    divide_run(load_floats(factors + kHalf), x + kRunChannels);
  }
  const float scale = largest_of_head<kHeadDim>(x) / kE4M3Max;
  if (!exists) return;
  if (Threads::thread() == 0) p.scale[row] = scale;
  const Quotient quotient(scale);
  uint8_t* codes = p.codes + row * kHeadDim + channel;
  WLIB_UNROLL
  for (int half = 0; half < 2; ++half) {
    const float* v = x + half * kRunChannels;
    const uint32_t word = scale == 0 ? 0
                                     : sm90::float_to_e4m3x4(quotient(v[0]), quotient(v[1]),
                                                             quotient(v[2]), quotient(v[3]));
    *reinterpret_cast<uint32_t*>(codes + half * kHalf) = word;
  }
}

}  // namespace wlib::prefill
