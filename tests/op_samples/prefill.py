"""Schemas of the prefill ops; their calls, on caches, are in test_prefill.py."""

from __future__ import annotations

from typing import Any

SCHEMAS = {
    "append_kv_int4.default": "wlib::append_kv_int4(Tensor k, Tensor v, Tensor slot_mapping, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, *, "
    "Tensor? k_mean=None, Tensor? k_smooth=None) -> ()",
    "attention_prefill.default": "wlib::attention_prefill(Tensor q, Tensor q_scale, "
    "Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, Tensor page_table, "
    "Tensor seqused_k, Tensor cu_seqlens_q, *, int max_seqlen_q, Tensor? k_new=None, "
    "Tensor? v_new=None, Tensor? k_new_scale=None, Tensor? v_new_scale=None, "
    "Tensor? key_mean=None, Tensor? sinks=None, float softmax_scale, bool causal=True, "
    "int window_left=-1, int window_right=-1, float softcap=0., int num_splits=0, "
    "bool allow_fp16_scores=False, ScalarType? out_dtype=None) -> (Tensor, Tensor)",
    "quantize_q_fp8.default": "wlib::quantize_q_fp8(Tensor q, *, Tensor? k_smooth=None, "
    "Tensor? cos=None, Tensor? sin=None) -> (Tensor, Tensor)",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return []
