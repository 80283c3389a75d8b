// The ops of family prefill, as the dispatcher calls them (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

namespace wlib::prefill {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void append_kv(const Tensor& k, const Tensor& v, const Tensor& slot_mapping, const Tensor& k_cache,
               const Tensor& v_cache, const Tensor& k_scale, const Tensor& v_scale,
               std::optional<Tensor> k_mean, std::optional<Tensor> k_smooth);
std::tuple<Tensor, Tensor> quantize_queries(const Tensor& q, std::optional<Tensor> k_smooth,
                                            std::optional<Tensor> cos, std::optional<Tensor> sin);
std::tuple<Tensor, Tensor> attention(
    const Tensor& q, const Tensor& q_scale, const Tensor& k_cache, const Tensor& v_cache,
    const Tensor& k_scale, const Tensor& v_scale, const Tensor& page_table, const Tensor& seqused_k,
    const Tensor& cu_seqlens_q, int64_t max_seqlen_q, std::optional<Tensor> k_new,
    std::optional<Tensor> v_new, std::optional<Tensor> k_new_scale,
    std::optional<Tensor> v_new_scale, std::optional<Tensor> key_mean, std::optional<Tensor> sinks,
    double softmax_scale, bool causal, int64_t window_left, int64_t window_right, double softcap,
    int64_t num_splits, bool allow_fp16_scores, std::optional<ScalarType> out_dtype);

}  // namespace wlib::prefill
