// Sums of E4M3 codes over groups of 32, 64 or 128 columns, which zero points multiply with
// (sm_90a; also runs in the simulator).
//
// A CTA takes four tokens, so that it stores 16 neighbouring bytes of a group; a warp takes 128
// columns of them at a time, eight lanes a token. Up to 64 values add up exactly in FP32 (multiples
// of 2^-9 below 2^15), and only the last addition of a group joins more: every sum is the exact
// one, rounded once, whoever makes it.
#pragma once

#include "wlib/params/int4fp8.h"
#include "wlib/sm90/convert.h"
#include "wlib/sm90/dependency.h"
#include "wlib/sm90/sync.h"

namespace wlib::int4fp8 {

constexpr int kSumsThreads = 256;
constexpr int kSumsTileColumns = 128;  // of a warp at a time
constexpr int kSumsRun = 16;           // codes of a lane: one load

WLIB_DEVICE float sum_of_codes(uint32_t codes) {
  const float2 low = sm90::e4m3x2_to_float2(uint16_t(codes)),
               high = sm90::e4m3x2_to_float2(uint16_t(codes >> 16));
  return (low.x + low.y) + (high.x + high.y);
}

// The sum over a group, from lanes of `run` neighbouring columns each; in every lane of the group.
WLIB_DEVICE float group_sum(float sum, int run, int group_log2) {
  for (int lanes = 1; lanes * run < 1 << group_log2; lanes *= 2)
    sum += sm90::warp_shuffle_xor(sum, lanes);
  return sum;
}

WLIB_KERNEL(kSumsThreads)
group_sums_kernel(WLIB_GRID_CONSTANT GroupSumsParams p) {
  constexpr int kLanes = kSumsTileColumns / kSumsRun;  // of a token
  constexpr int kStride = kSumsThreads / sm90::kWarpThreads * kSumsTileColumns;
  const int lane = sm90::lane_index();
  const int64_t token = int64_t(sm90::block_index_x()) * kSumsAlignment + lane / kLanes;
  const uint8_t* x = p.x + token * p.x_stride;
  sm90::grid_dependency_wait();
  sm90::launch_dependents();
  for (int64_t first = sm90::warp_index() * kSumsTileColumns; first < p.k; first += kStride) {
    const int64_t column = first + lane % kLanes * kSumsRun;
    uint4 codes = {0, 0, 0, 0};
    if (token < p.rows && column < p.k) codes = *reinterpret_cast<const uint4*>(x + column);
    const float run = (sum_of_codes(codes.x) + sum_of_codes(codes.y)) +
                      (sum_of_codes(codes.z) + sum_of_codes(codes.w));
    const float sum = group_sum(run, kSumsRun, p.group_log2);
    const bool leads = (column & ((1 << p.group_log2) - 1)) == 0;
    if (leads && column < p.k) p.sums[(column >> p.group_log2) * p.pitch + token] = sum;
  }
}

}  // namespace wlib::int4fp8
