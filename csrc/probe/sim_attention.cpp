// Instrumented: the loads and stores of the kernels included here call the checker
// (tests/sim/hooks.cpp).
#include "probe/sim_attention.h"

#include <stdexcept>

#include "prefill/sm90_attention.h"
#include "prefill/sm90_attention_combine.h"

namespace wlib::prefill {
namespace {

sim::Buffer input(const void* data, int64_t bytes, const char* name) {
  return {const_cast<void*>(data), data ? size_t(bytes) : 0, name, false};
}

// From a cache's first row to the end of its last one.
int64_t extent(const AttentionParams& p, const RowStrides& rows, int64_t row_bytes) {
  return p.blocks == 0
             ? 0
             : row_offset(rows, p.blocks - 1, p.block_tokens - 1, p.kv_heads - 1) + row_bytes;
}

std::vector<sim::Buffer> inputs(const AttentionParams& p) {
  const int64_t slots = p.blocks * p.kv_heads * kKeys, rows = p.tokens * p.heads,
                fresh = p.tokens * p.kv_heads;
  const auto codes = [&](const RowStrides& stride) {
    return p.token_rows ? extent(p, stride, p.head_dim / 2) : slots * p.head_dim / 2;
  };
  const auto scales = [&](const RowStrides& stride) {
    return p.token_rows ? extent(p, stride, 4) : slots * 4;
  };
  return {input(p.q, rows * p.head_dim, "q"),
          input(p.q_scale, rows * 4, "q_scale"),
          input(p.k_cache, codes(p.k_rows), "k_cache"),
          input(p.v_cache, codes(p.v_rows), "v_cache"),
          input(p.k_scale, scales(p.k_scale_rows), "k_scale"),
          input(p.v_scale, scales(p.v_scale_rows), "v_scale"),
          input(p.page_table, p.batch * p.max_blocks * 4, "page_table"),
          input(p.cached, p.batch * 4, "cached"),
          input(p.starts, (p.batch + 1) * 4, "starts"),
          input(p.k_new, fresh * p.head_dim, "k_new"),
          input(p.v_new, fresh * p.head_dim, "v_new"),
          input(p.k_new_scale, fresh * 4, "k_new_scale"),
          input(p.v_new_scale, fresh * 4, "v_new_scale"),
          input(p.key_mean, p.kv_heads * p.head_dim * 4, "key_mean"),
          input(p.sinks, p.heads * 4, "sinks")};
}

template <class C>
sim::Report run(const AttentionKernelParams& p, int ctas, const sim::Options& options) {
  const int64_t rows = p.tokens * p.heads, size = p.out_type == FloatType::kFloat32 ? 4 : 2;
  const int64_t part_bytes = p.part_out ? p.plan.splits * rows * (p.head_dim + 1) * 4 : 0;
  std::vector<sim::Buffer> buffers = inputs(p);
  buffers.push_back({p.out, size_t(rows * p.head_dim * size), "out", true});
  buffers.push_back({p.lse, size_t(rows * 4), "lse", true});
  buffers.push_back({p.part_out, size_t(part_bytes), "parts", true});
  const sim::LaunchConfig config{{ctas, 1, 1}, C::kThreads, sizeof(AttentionSmem<C>)};
  sim::Report report = sim::launch(config, options, buffers, attention_kernel<C>, p);
  if (p.plan.splits == 1 || !report.ok()) return report;
  buffers.back().writable = false;
  const int grid = int(ceil_div(rows, kCombineThreads / sm90::kWarpThreads));
  return sim::launch({{grid, 1, 1}, kCombineThreads, 0}, options, buffers, combine_kernel, p);
}

struct Instance {
  AttentionInstance of;
  sim::Report (*run)(const AttentionKernelParams&, int, const sim::Options&);
};
template <int kHeadDim, bool kHalfScores, bool kTokenRows>
constexpr Instance instance() {
  return {{kHeadDim, kHalfScores, kTokenRows},
          run<AttentionConfig<kHeadDim, kHalfScores, kTokenRows>>};
}
constexpr Instance kInstances[] = {
#ifndef WLIB_SIM_ONLY_SMALL
    instance<64, false, false>(),
    instance<64, true, false>(),
    instance<256, false, false>(),
    instance<256, true, false>(),
    instance<64, false, true>(),
    instance<64, true, true>(),
    instance<256, false, true>(),
    instance<256, true, true>(),
    instance<128, true, true>(),
#endif
    // All that mutants need.
    instance<128, false, false>(),
    instance<128, true, false>(),
    instance<128, false, true>(),
};

AttentionKernelParams plan(const AttentionParams& params, int splits, int ctas) {
  AttentionKernelParams p{};
  static_cast<AttentionParams&>(p) = params;
  p.plan = plan_attention(p.batch, p.kv_heads, p.heads / p.kv_heads, p.max_queries,
                          ceil_div(p.max_blocks * p.block_tokens, kKeys),
                          p.k_new ? p.max_queries : 0, splits, ctas);
  return p;
}

}  // namespace

sim::Report simulate_attention(const AttentionParams& params, const AttentionLaunch& launch,
                               float* parts, const sim::Options& options) {
  AttentionKernelParams p = plan(params, launch.splits, launch.ctas);
  const int64_t rows = p.tokens * p.heads;
  if (p.plan.splits > 1) {
    p.part_out = parts;
    p.part_lse = parts + p.plan.splits * rows * p.head_dim;
  }
  for (const Instance& i : kInstances)
    if (i.of == AttentionInstance{p.head_dim, takes_fp16_scores(p), p.token_rows})
      return i.run(p, launch.ctas, options);
  throw std::invalid_argument("no such instance of the attention kernel");
}

std::vector<ItemSteps> attention_items(const AttentionParams& params, int splits) {
  const AttentionKernelParams p = plan(params, splits, /*ctas=*/1);
  std::vector<ItemSteps> items;
  for (int i = 0; i < p.plan.items; ++i) {
    const AttentionItem item(p, i);
    items.push_back({item.sequence, item.first_query, item.rows, item.end_tile - item.first_tile});
  }
  return items;
}

std::vector<AttentionInstance> attention_instances() {
  std::vector<AttentionInstance> found;
  for (const Instance& i : kInstances) found.push_back(i.of);
  return found;
}

}  // namespace wlib::prefill
