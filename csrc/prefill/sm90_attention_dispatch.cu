// The dispatch table of attention_prefill on Hopper, and the kernel that combines parts of the
// keys.
#include <string>

#include "cuda_device.h"
#include "prefill/attention_cuda.h"
#include "prefill/sm90_attention_combine.h"
#include "prefill/sm90_attention_launch.h"
#include "wlib/sm90/launch.h"

namespace wlib::prefill {
namespace {

struct Row {
  int head_dim;
  bool half_scores, token_rows;
  cudaError_t (*launch)(const AttentionKernelParams&, cudaStream_t);
};
template <int kHeadDim, bool kHalfScores, bool kTokenRows>
constexpr Row row() {
  return {kHeadDim, kHalfScores, kTokenRows, launch_attention<kHeadDim, kHalfScores, kTokenRows>};
}
constexpr Row kRows[] = {
    row<64, false, false>(), row<64, true, false>(),   row<128, false, false>(),
    row<128, true, false>(), row<256, false, false>(), row<256, true, false>(),
    row<64, false, true>(),  row<64, true, true>(),    row<128, false, true>(),
    row<128, true, true>(),  row<256, false, true>(),  row<256, true, true>(),
};

cudaError_t launch_combine(const AttentionKernelParams& p, cudaStream_t stream) {
  const int64_t ctas = ceil_div(p.tokens * p.heads, kCombineThreads / sm90::kWarpThreads);
  return sm90::launch(combine_kernel, dim3(unsigned(ctas)), kCombineThreads, 0, 1, stream, p);
}

}  // namespace

const char* attention_cuda_rows() {
  static const std::string text = [] {
    std::string lines;
    for (const Row& row : kRows) {
      lines += "sm_90a, head_dim " + std::to_string(row.head_dim) + ": sm90_attention" +
               (row.token_rows ? " over a row per token with a zero point" : "") +
               ", 128 rows by 64 keys, scores in " +
               (row.half_scores ? "FP16 (if allowed, no new keys, no softcap)" : "FP32") +
               "; keys split by attention_plan.h, parts added up by sm90_combine\n";
    }
    return lines;
  }();
  return text.c_str();
}

const char* attention_cuda_plan(const AttentionParams& p, int splits, int device,
                                AttentionPlan* plan) {
  if (const char* refusal = refuse_device(device)) return refusal;
  int sms = 0;
  if (const auto error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device))
    return cudaGetErrorString(error);
  *plan = plan_attention(p.batch, p.kv_heads, p.heads / p.kv_heads, p.max_queries,
                         ceil_div(p.max_blocks * p.block_tokens, kKeys),
                         p.k_new ? p.max_queries : 0, splits, sms);
  return plan->items < int64_t(1) << 31 ? nullptr : "more than 2^31 tiles of queries in one launch";
}

const char* attention_cuda(const AttentionParams& params, const AttentionPlan& plan, float* parts,
                           int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  if (plan.items == 0) return nullptr;
  AttentionKernelParams p{};
  static_cast<AttentionParams&>(p) = params;
  p.plan = plan;
  p.part_out = parts;
  p.part_lse = parts ? parts + plan.splits * p.tokens * p.heads * p.head_dim : nullptr;
  for (const Row& row : kRows) {
    if (row.head_dim != p.head_dim || row.half_scores != takes_fp16_scores(p) ||
        row.token_rows != p.token_rows) {
      continue;
    }
    cudaError_t error = row.launch(p, static_cast<cudaStream_t>(stream));
    if (error == cudaSuccess && plan.splits > 1)
      error = launch_combine(p, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  return "no kernel for this head_dim";
}

}  // namespace wlib::prefill
