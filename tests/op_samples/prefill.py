"""Schemas of the prefill ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import wlib

SCHEMAS = {
    "append_kv_int4.default": "wlib::append_kv_int4(Tensor k, Tensor v, Tensor slot_mapping, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, *, "
    "Tensor? k_mean=None, Tensor? k_smooth=None) -> ()",
    "attention_prefill.default": "wlib::attention_prefill(Tensor q, Tensor q_scale, "
    "Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, Tensor page_table, "
    "Tensor seqused_k, Tensor cu_seqlens_q, *, SymInt max_seqlen_q, Tensor? k_new=None, "
    "Tensor? v_new=None, Tensor? k_new_scale=None, Tensor? v_new_scale=None, "
    "Tensor? key_mean=None, Tensor? sinks=None, float softmax_scale, bool causal=True, "
    "int window_left=-1, int window_right=-1, float softcap=0., int num_splits=0, "
    "bool allow_fp16_scores=False, ScalarType? out_dtype=None) -> (Tensor, Tensor)",
    "quantize_q_fp8.default": "wlib::quantize_q_fp8(Tensor q, *, Tensor? k_smooth=None, "
    "Tensor? cos=None, Tensor? sin=None) -> (Tensor, Tensor)",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return query_samples() + append_samples() + attention_samples()


def query_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    apart = torch.randn(5, 6, 128).bfloat16()[:, 2:]
    cos, sin = torch.rand(5, 64), torch.rand(5, 64)
    options = {"k_smooth": torch.rand(2, 128) + 0.5, "cos": cos, "sin": sin}
    return [
        ("quantize_q_fp8.default", (torch.randn(3, 2, 64),), {}),
        ("quantize_q_fp8.default", (apart,), options),
        ("quantize_q_fp8.default", (apart.half(),), {"cos": cos, "sin": sin}),
        ("quantize_q_fp8.default", (torch.randn(0, 1, 256),), {}),
    ]


def cache_tensors(kv: wlib.Int4KVCache) -> tuple[Tensor, ...]:
    return kv.k, kv.v, kv.k_scale, kv.v_scale


def append_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Blocks that are begun, rows that lie apart, slots that are skipped, no tokens at all."""
    k, v = torch.randn(2, 5, 3, 128).half()[..., :2, :].unbind()
    slots = torch.tensor([70, -1, 3, 127, 0])
    factors = {"k_mean": torch.randn(2, 128), "k_smooth": torch.rand(2, 128) + 0.5}
    calls = [
        ((torch.randn(4, 1, 64), torch.randn(4, 1, 64), torch.arange(62, 66)), {}),
        ((k, v, slots), factors),
        ((k.bfloat16(), v.bfloat16(), slots), {"k_mean": factors["k_mean"]}),
        ((torch.empty(0, 1, 256), torch.empty(0, 1, 256), slots[:0]), {}),
    ]
    return [
        ("append_kv_int4.default",
         (*tokens, *cache_tensors(wlib.Int4KVCache.allocate(2, *tokens[0].shape[1:]))), options)
        for tokens, options in calls
    ]  # fmt: skip


def attention_call(
    queries: list[int], cached: list[int], dim: int, new: bool = False, **options: Any
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Four query heads over two KV heads of sequences that begin with `cached` tokens."""
    lengths = torch.tensor(cached, dtype=torch.int32)
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    k, v = torch.randn(2, sum(cached), 2, dim)
    kv, table = wlib.quantize_kv_int4(k, v, torch.tensor([0, *cached]).cumsum(0).int())
    q, q_scale = wlib.quantize_q_fp8(torch.randn(sum(queries), 4, dim))
    for name in ("k_new", "v_new") if new else ():
        options[name], options[f"{name}_scale"] = wlib.fp8_quantize(
            torch.randn(sum(queries), 2, dim)
        )
    arguments = (q, q_scale, *cache_tensors(kv), table, lengths, starts)
    options |= {"max_seqlen_q": max(queries), "softmax_scale": dim**-0.5}
    return "attention_prefill.default", arguments, options


def vllm_attention_call() -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Rows of a key and its value behind each other, blocks of 16 tokens."""
    kv = wlib.VllmInt4Cache.from_vllm(torch.zeros(3, 2, 16, 136, dtype=torch.uint8))
    kv.append(*torch.randn(2, 20, 2, 128), torch.arange(20))
    name, arguments, options = attention_call([5], [20], 128)
    tables = torch.tensor([[0, 1]], dtype=torch.int32), *arguments[7:]
    return name, (*arguments[:2], kv.k, kv.v, kv.k_scale, kv.v_scale, *tables), options


def attention_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    every = {
        "key_mean": torch.randn(2, 64),
        "sinks": torch.randn(4),
        "causal": False,
        "window_left": 20,
        "window_right": 3,
        "softcap": 5.0,
        "num_splits": 2,
    }
    return [
        attention_call([5, 3], [70, 10], 128),
        attention_call([5, 0, 3], [70, 10, 0], 64, new=True, out_dtype=torch.float32, **every),
        attention_call([4], [0], 256, new=True, out_dtype=torch.float16),
        attention_call([0], [65], 64),
        vllm_attention_call(),
    ]
