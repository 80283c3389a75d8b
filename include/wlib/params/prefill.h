// What the ops of family prefill hand to their kernels, CPU and CUDA alike, after every argument
// has been checked. Shapes: T tokens, Hq query heads, Hkv KV heads, D = head_dim.
#pragma once

#include "wlib/params/float_type.h"
#include "wlib/platform.h"

namespace wlib::prefill {

// Codes and scales of tokens into the cache's slots: scale = max |k'| / 7, code = round(k' /
// scale), k' = (k - mean) * smooth; values likewise without mean and smooth.
struct AppendParams {
  const void *k, *v;           // [tokens, heads, head_dim] of type, unit stride along head_dim
  const int64_t* slots;        // [tokens] block * 64 + offset; negative: the token is skipped
  const float *mean, *smooth;  // [heads, head_dim] or null
  uint8_t *k_cache, *v_cache;  // [blocks, heads, head_dim * 32], see layout/int4_kv.h
  float *k_scale, *v_scale;    // [blocks, heads, 64]
  int64_t tokens, blocks;
  int64_t k_stride[2], v_stride[2];  // elements between tokens, between heads
  int heads, head_dim;
  FloatType type;
};

// codes = E4M3(q' / scale), scale = max |q'| / 448 per token and head, q' = rotate(q) / smooth
struct QuantizeQueriesParams {
  const void* q;              // [tokens, heads, head_dim] of type, unit stride along head_dim
  const float* smooth;        // [kv_heads, head_dim] or null
  const float *cos, *sin;     // [tokens, head_dim / 2] or null: no rotation
  uint8_t* codes;             // [tokens, heads, head_dim]
  float* scale;               // [tokens, heads]
  int64_t tokens, stride[2];  // elements between tokens, between heads
  int heads, kv_heads, head_dim;
  FloatType type;
};

// Bytes between neighbours of a cache with a row per token, see layout/int4_tokens.h.
struct RowStrides {
  int64_t block, token, head;
};
WLIB_HOST_DEVICE constexpr int64_t row_offset(const RowStrides& stride, int64_t block,
                                              int64_t token, int64_t head) {
  return block * stride.block + token * stride.token + head * stride.head;
}

struct AttentionParams {
  const uint8_t* q;                  // [tokens, heads, head_dim] E4M3
  const float* q_scale;              // [tokens, heads]
  const uint8_t *k_cache, *v_cache;  // [blocks, kv_heads, head_dim * 32], or rows
  const float *k_scale, *v_scale;    // [blocks, kv_heads, 64], or rows
  bool token_rows;                   // the cache's layout: int4_tokens.h, not int4_kv.h
  int block_tokens;                  // 64 unless token_rows
  RowStrides k_rows, v_rows, k_scale_rows, v_scale_rows;  // if token_rows
  const int32_t* page_table;                              // [batch, max_blocks]
  const int32_t* cached;         // [batch] tokens of each sequence that are in the cache
  const int32_t* starts;         // [batch + 1] first query of each sequence
  const uint8_t *k_new, *v_new;  // [tokens, kv_heads, head_dim] E4M3 behind the cache, or null
  const float *k_new_scale, *v_new_scale;  // [tokens, kv_heads]
  const float* key_mean;  // [kv_heads, head_dim] what was taken off the keys, smoothed; or null
  const float* sinks;     // [heads] one more score per row, without a value; or null
  void* out;              // [tokens, heads, head_dim] of out_type
  float* lse;             // [heads, tokens]
  int64_t tokens, blocks, max_blocks;
  int batch, heads, kv_heads, head_dim, max_queries;
  float softmax_scale, softcap;  // softcap 0: none
  bool causal;
  bool allow_fp16_scores;         // q k^T and its softmax in FP16, where that cannot overflow
  int window_left, window_right;  // keys left and right of the diagonal; negative: unlimited
  FloatType out_type;
};

// The keys that row `query` of `queries` sees, of `keys` in all: the last query is aligned with the
// last key.
struct KeyRange {
  int64_t begin, end;
};
WLIB_HOST_DEVICE constexpr KeyRange visible_keys(int64_t query, int64_t queries, int64_t keys,
                                                 bool causal, int64_t left, int64_t right) {
  const int64_t diagonal = query + keys - queries;
  int64_t begin = 0, end = keys;
  if (causal && diagonal + 1 < end) end = diagonal + 1;
  if (right >= 0 && diagonal + right + 1 < end) end = diagonal + right + 1;
  if (left >= 0 && diagonal - left > begin) begin = diagonal - left;
  return {begin, end > begin ? end : begin};
}

}  // namespace wlib::prefill
