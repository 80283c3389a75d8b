// The parts of split keys -> outputs, part after part in order: no atomics, nothing depends on
// timing (sm_90a; also runs in the simulator).
#pragma once

#include "prefill/sm90_attention_rows.h"

namespace wlib::prefill {

constexpr int kCombineThreads = 128;

// A warp takes a token and head; a lane two neighbouring channels of every 64.
WLIB_KERNEL(kCombineThreads)
combine_kernel(WLIB_GRID_CONSTANT AttentionKernelParams p) {
  const int64_t rows = p.tokens * p.heads;
  const int64_t query = int64_t(sm90::block_index_x()) * (kCombineThreads / sm90::kWarpThreads) +
                        sm90::thread_index() / sm90::kWarpThreads;
  if (query >= rows) return;
  const int64_t token = query / p.heads;
  const int head = int(query % p.heads);
  const float* part_lse = p.part_lse + head * p.tokens + token;
  float largest = p.sinks ? p.sinks[head] : kNone;
  for (int s = 0; s < p.plan.splits; ++s) largest = fmaxf(largest, part_lse[s * rows]);
  const float base = largest == kNone ? 0.0f : largest;
  float sum = p.sinks ? sm90::exp2_fast((p.sinks[head] - base) * kLog2E) : 0.0f;
  for (int s = 0; s < p.plan.splits; ++s)
    sum += sm90::exp2_fast((part_lse[s * rows] - base) * kLog2E);
  const float factor = sum == 0 ? 0.0f : 1.0f / sum;
  for (int d = sm90::lane_index() * 2; d < p.head_dim; d += 64) {
    float2 out = {0, 0};
    for (int s = 0; s < p.plan.splits; ++s) {
      const float weight = sm90::exp2_fast((part_lse[s * rows] - base) * kLog2E) * factor;
      const float2 part =
          *reinterpret_cast<const float2*>(p.part_out + (s * rows + query) * p.head_dim + d);
      out.x += weight * part.x;
      out.y += weight * part.y;
    }
    store_two(p.out, p.out_type, query * p.head_dim + d, out.x, out.y);
  }
  if (sm90::lane_index() == 0)
    p.lse[head * p.tokens + token] = sum == 0 ? kNone : base + log2f(sum) * kLn2;
}

}  // namespace wlib::prefill
