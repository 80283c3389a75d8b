// wlib::attention_prefill: checks every argument, fills AttentionParams, picks CPU or CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "prefill/attention_cuda.h"
#include "prefill/cpu.h"
#include "prefill/ops.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/stream.h"
#include "wlib/layout/int4_kv.h"

namespace wlib::prefill {
namespace {

struct Arguments {
  const Tensor &q, &q_scale, &k_cache, &v_cache, &k_scale, &v_scale, &page_table, &seqused_k,
      &cu_seqlens_q;
  const std::optional<Tensor>&k_new, &v_new, &k_new_scale, &v_new_scale, &key_mean, &sinks;
};

const void* check_tensor(const Checker& check, const Tensor& t, const char* name, ScalarType type,
                         std::initializer_list<int64_t> shape, const Tensor& q) {
  check.dtype(t, name, type);
  check.shape(t, name, {shape.begin(), shape.size()});
  check.same_device(t, name, q, "q");
  check.contiguous(t, name);
  return t.const_data_ptr();
}

void parse_queries(const Checker& check, const Arguments& a, AttentionParams& p) {
  check.dtype(a.q, "q", ScalarType::Float8_e4m3fn);
  check.require(a.q.dim() == 3, "q", "q of shape [tokens, heads, head_dim]",
                [&] { return shape_text(a.q); });
  check.contiguous(a.q, "q");
  p.tokens = a.q.size(0);
  p.heads = int(a.q.size(1));
  p.head_dim = int(a.q.size(2));
  check.require(p.head_dim == 64 || p.head_dim == 128 || p.head_dim == 256, "q",
                "head_dim of 64, 128 or 256", p.head_dim);
  p.q = static_cast<const uint8_t*>(a.q.const_data_ptr());
  p.q_scale = static_cast<const float*>(
      check_tensor(check, a.q_scale, "q_scale", ScalarType::Float, {p.tokens, p.heads}, a.q));
  check.dtype(a.cu_seqlens_q, "cu_seqlens_q", ScalarType::Int);
  check.require(a.cu_seqlens_q.dim() == 1 && a.cu_seqlens_q.size(0) >= 1, "cu_seqlens_q",
                "cu_seqlens_q of shape [batch + 1]", [&] { return shape_text(a.cu_seqlens_q); });
  p.batch = int(a.cu_seqlens_q.size(0)) - 1;
  p.starts = static_cast<const int32_t*>(
      check_tensor(check, a.cu_seqlens_q, "cu_seqlens_q", ScalarType::Int, {p.batch + 1}, a.q));
}

void parse_blocks(const Checker& check, const Arguments& a, AttentionParams& p) {
  const int64_t bytes = int4kv::block_bytes(p.head_dim);
  p.block_tokens = int4kv::kBlockTokens;
  const auto cache = [&](const Tensor& t, const char* name, ScalarType type, int64_t last) {
    return check_tensor(check, t, name, type, {p.blocks, p.kv_heads, last}, a.q);
  };
  p.k_cache = static_cast<const uint8_t*>(cache(a.k_cache, "k_cache", ScalarType::Byte, bytes));
  p.v_cache = static_cast<const uint8_t*>(cache(a.v_cache, "v_cache", ScalarType::Byte, bytes));
  p.k_scale = static_cast<const float*>(
      cache(a.k_scale, "k_scale", ScalarType::Float, int4kv::kBlockTokens));
  p.v_scale = static_cast<const float*>(
      cache(a.v_scale, "v_scale", ScalarType::Float, int4kv::kBlockTokens));
}

// One row per token and head, wherever the strides put it.
const void* check_rows(const Checker& check, const Tensor& t, const char* name, ScalarType type,
                       std::span<const int64_t> shape, const Tensor& q, RowStrides& rows) {
  check.dtype(t, name, type);
  check.shape(t, name, shape);
  check.same_device(t, name, q, "q");
  const auto strides = t.strides();
  check.require(
      shape.size() == 3 || strides[3] == 1, name,
      [&] { return std::string(name) + " with neighbouring bytes of a head"; },
      [&] { return "strides " + shape_text({strides.data(), strides.size()}); });
  const int64_t size = type == ScalarType::Float ? sizeof(float) : 1;
  rows = {strides[0] * size, strides[1] * size, strides[2] * size};
  return t.const_data_ptr();
}

void parse_rows(const Checker& check, const Arguments& a, AttentionParams& p) {
  p.token_rows = true;
  p.block_tokens = int(a.k_cache.size(1));
  const int64_t codes[] = {p.blocks, p.block_tokens, p.kv_heads, p.head_dim / 2};
  const auto cache = [&](const Tensor& t, const char* name, RowStrides& rows) {
    return static_cast<const uint8_t*>(
        check_rows(check, t, name, ScalarType::Byte, codes, a.q, rows));
  };
  const auto scale = [&](const Tensor& t, const char* name, RowStrides& rows) {
    return static_cast<const float*>(
        check_rows(check, t, name, ScalarType::Float, std::span(codes).first(3), a.q, rows));
  };
  p.k_cache = cache(a.k_cache, "k_cache", p.k_rows);
  p.v_cache = cache(a.v_cache, "v_cache", p.v_rows);
  p.k_scale = scale(a.k_scale, "k_scale", p.k_scale_rows);
  p.v_scale = scale(a.v_scale, "v_scale", p.v_scale_rows);
}

void parse_cache(const Checker& check, const Arguments& a, AttentionParams& p) {
  const bool rows = a.k_cache.dim() == 4;
  const int64_t kv_heads = rows ? a.k_cache.size(2) : a.k_cache.dim() == 3 ? a.k_cache.size(1) : 0;
  check.require(
      kv_heads > 0 && p.heads % kv_heads == 0 && (!rows || a.k_cache.size(1) > 0), "k_cache",
      [&] {
        return "k_cache of shape [blocks, kv_heads, head_dim * 32] or [blocks, block_size, "
               "kv_heads, head_dim / 2], kv_heads dividing " +
               std::to_string(p.heads) + " query heads";
      },
      [&] { return shape_text(a.k_cache); });
  p.blocks = a.k_cache.size(0);
  p.kv_heads = int(kv_heads);
  check.require(p.heads / p.kv_heads <= 16, "k_cache", "at most 16 query heads per KV head",
                p.heads / p.kv_heads);
  if (rows)
    parse_rows(check, a, p);
  else
    parse_blocks(check, a, p);
  p.cached = static_cast<const int32_t*>(
      check_tensor(check, a.seqused_k, "seqused_k", ScalarType::Int, {p.batch}, a.q));
  p.max_blocks = a.page_table.dim() == 2 ? a.page_table.size(1) : 0;
  p.page_table = static_cast<const int32_t*>(check_tensor(
      check, a.page_table, "page_table", ScalarType::Int, {p.batch, p.max_blocks}, a.q));
}

void parse_optional(const Checker& check, const Arguments& a, AttentionParams& p) {
  const bool all = a.k_new && a.v_new && a.k_new_scale && a.v_new_scale;
  check.require(all || !(a.k_new || a.v_new || a.k_new_scale || a.v_new_scale), "k_new",
                "all of k_new, v_new, k_new_scale, v_new_scale or none", "some of them");
  if (all) {
    const auto codes = [&](const Tensor& t, const char* name) {
      return static_cast<const uint8_t*>(check_tensor(check, t, name, ScalarType::Float8_e4m3fn,
                                                      {p.tokens, p.kv_heads, p.head_dim}, a.q));
    };
    const auto scale = [&](const Tensor& t, const char* name) {
      return static_cast<const float*>(
          check_tensor(check, t, name, ScalarType::Float, {p.tokens, p.kv_heads}, a.q));
    };
    p.k_new = codes(*a.k_new, "k_new");
    p.v_new = codes(*a.v_new, "v_new");
    p.k_new_scale = scale(*a.k_new_scale, "k_new_scale");
    p.v_new_scale = scale(*a.v_new_scale, "v_new_scale");
  }
  if (a.key_mean) {
    p.key_mean = static_cast<const float*>(check_tensor(
        check, *a.key_mean, "key_mean", ScalarType::Float, {p.kv_heads, p.head_dim}, a.q));
  }
  if (a.sinks) {
    p.sinks = static_cast<const float*>(
        check_tensor(check, *a.sinks, "sinks", ScalarType::Float, {p.heads}, a.q));
  }
}

// What only the CPU can look at without waiting for a device.
void check_contents(const Checker& check, const AttentionParams& p) {
  check.require(p.starts[0] == 0, "cu_seqlens_q", "cu_seqlens_q to begin with 0", p.starts[0]);
  for (int b = 0; b < p.batch; ++b) {
    const int queries = p.starts[b + 1] - p.starts[b];
    check.require(
        queries >= 0 && p.starts[b + 1] <= p.tokens, "cu_seqlens_q",
        [&] { return "cu_seqlens_q not to decrease, up to " + std::to_string(p.tokens); },
        p.starts[b + 1]);
    check.require(
        queries <= p.max_queries, "max_seqlen_q",
        [&] { return "max_seqlen_q of at least " + std::to_string(queries); }, p.max_queries);
    check.require(
        p.cached[b] >= 0 && p.cached[b] <= p.max_blocks * p.block_tokens, "seqused_k",
        [&] {
          return "seqused_k from 0 to " + std::to_string(p.max_blocks * p.block_tokens) +
                 ", the page table's columns times " + std::to_string(p.block_tokens);
        },
        p.cached[b]);
    for (int64_t i = 0; i * p.block_tokens < p.cached[b]; ++i) {
      const int page = p.page_table[b * p.max_blocks + i];
      check.require(
          page >= 0 && page < p.blocks, "page_table",
          [&] { return "blocks from 0 to " + std::to_string(p.blocks - 1); }, page);
    }
  }
  check.require(
      p.starts[p.batch] == p.tokens, "cu_seqlens_q",
      [&] { return "cu_seqlens_q to end with " + std::to_string(p.tokens); }, p.starts[p.batch]);
}

#ifdef WLIB_HAS_CUDA
// The kernels move 16 bytes at a time, or 4 of a cache with a row per token, and count keys in 32
// bits.
void check_for_cuda(const Checker& check, const AttentionParams& p) {
  const std::pair<const void*, const char*> operands[] = {
      {p.q, "q"}, {p.k_new, "k_new"}, {p.v_new, "v_new"}};
  for (const auto& [pointer, name] : operands) check.aligned(pointer, name, 16);
  const std::tuple<const void*, const char*, const RowStrides&> cache[] = {
      {p.k_cache, "k_cache", p.k_rows},
      {p.v_cache, "v_cache", p.v_rows},
      {p.k_scale, "k_scale", p.k_scale_rows},
      {p.v_scale, "v_scale", p.v_scale_rows}};
  for (const auto& [pointer, name, rows] : cache) {
    check.aligned(pointer, name, p.token_rows ? 4 : 16);
    check.require((rows.block | rows.token | rows.head) % 4 == 0, name,
                  [&] { return std::string(name) + " with rows at multiples of 4 bytes"; },
                  [&] {
                    const int64_t strides[] = {rows.block, rows.token, rows.head};
                    return "rows " + shape_text(strides) + " bytes apart";
                  });
  }
  check.require(p.max_blocks * p.block_tokens + p.max_queries < INT32_MAX, "page_table",
                "a page table of fewer than 2^31 tokens per sequence", p.max_blocks);
}

void attention_on_cuda(const Checker& check, const AttentionParams& p, int splits,
                       const Tensor& q) {
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  AttentionPlan plan;
  if (const char* error = attention_cuda_plan(p, splits, device, &plan))
    throw_cuda_error(check, error);
  // The tensor may go after the launch: the allocator reuses memory in stream order.
  std::optional<Tensor> parts;
  if (plan.splits > 1) {
    const int64_t shape[] = {plan.splits * p.tokens * p.heads * (p.head_dim + 1)};
    parts = new_empty(q, shape, ScalarType::Float);
  }
  float* workspace = parts ? static_cast<float*>(parts->mutable_data_ptr()) : nullptr;
  if (const char* error = attention_cuda(p, plan, workspace, device, current_cuda_stream(device)))
    throw_cuda_error(check, error);
}
#endif

}  // namespace

std::tuple<Tensor, Tensor> attention(
    const Tensor& q, const Tensor& q_scale, const Tensor& k_cache, const Tensor& v_cache,
    const Tensor& k_scale, const Tensor& v_scale, const Tensor& page_table, const Tensor& seqused_k,
    const Tensor& cu_seqlens_q, int64_t max_seqlen_q, std::optional<Tensor> k_new,
    std::optional<Tensor> v_new, std::optional<Tensor> k_new_scale,
    std::optional<Tensor> v_new_scale, std::optional<Tensor> key_mean, std::optional<Tensor> sinks,
    double softmax_scale, bool causal, int64_t window_left, int64_t window_right, double softcap,
    int64_t num_splits, bool allow_fp16_scores, std::optional<ScalarType> out_dtype) {
  const Checker check("attention_prefill");
  const Arguments a{q,       q_scale,     k_cache,     v_cache,      k_scale,
                    v_scale, page_table,  seqused_k,   cu_seqlens_q, k_new,
                    v_new,   k_new_scale, v_new_scale, key_mean,     sinks};
  AttentionParams p{};
  parse_queries(check, a, p);
  parse_cache(check, a, p);
  parse_optional(check, a, p);
  check.require(max_seqlen_q >= 0, "max_seqlen_q", "max_seqlen_q of at least 0", max_seqlen_q);
  check.require(softcap >= 0, "softcap", "softcap of 0 (none) or more", softcap);
  check.require(num_splits >= 0, "num_splits", "num_splits of 0 (automatic) or more", num_splits);
  const ScalarType type = out_dtype.value_or(ScalarType::BFloat16);
  p.out_type = check.floating(type, "out_dtype");
  p.max_queries = int(std::min<int64_t>(max_seqlen_q, p.tokens));
  p.softmax_scale = float(softmax_scale);
  p.softcap = float(softcap);
  p.causal = causal;
  p.allow_fp16_scores = allow_fp16_scores;
  p.window_left = int(std::clamp<int64_t>(window_left, -1, INT32_MAX));
  p.window_right = int(std::clamp<int64_t>(window_right, -1, INT32_MAX));
  if (q.is_cpu())
    check_contents(check, p);
  else if (!q.is_cuda())
    check.no_kernel("device " + Checker::device_text(q) + " (rows: cpu, cuda)");
#ifdef WLIB_HAS_CUDA
  else
    check_for_cuda(check, p);
#else
  else
    check.no_kernel("device cuda: this library was built without CUDA (rows: cpu)");
#endif

  const Tensor out = new_empty(q, sizes_of(q), type);
  const int64_t lse_shape[] = {p.heads, p.tokens};
  const Tensor lse = new_empty(q, lse_shape, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  if (p.tokens == 0) return {out, lse};
  if (q.is_cpu()) attention_cpu(p);
#ifdef WLIB_HAS_CUDA
  else
    attention_on_cuda(check, p, int(std::min<int64_t>(num_splits, kMaxSplits)), q);
#endif
  return {out, lse};
}

}  // namespace wlib::prefill
