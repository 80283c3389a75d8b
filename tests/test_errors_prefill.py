"""Every refusal of the prefill family: the class of the error and its whole message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import wlib
import wlib.nn

FP8 = torch.float8_e4m3fn
FLOATS = "torch.float32, torch.bfloat16 or torch.float16"


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def attention(**changed: Any) -> None:
    """Five queries of two sequences over a cache of three blocks, except for `changed`."""
    kv = wlib.Int4KVCache.allocate(3, 2, 64)
    tensors = {name: changed.pop(name, getattr(kv, name)) for name in ("k", "v", "k_scale")}
    arguments: dict[str, Any] = {
        "q8": torch.zeros(5, 4, 64, dtype=FP8),
        "kv": wlib.Int4KVCache(v_scale=kv.v_scale, **tensors),
        "q_scale": torch.ones(5, 4),
        "cu_seqlens_q": ints(0, 2, 5),
        "max_seqlen_q": 3,
        "seqused_k": ints(70, 10),
        "page_table": torch.tensor([[0, 1], [2, 0]], dtype=torch.int32),
    }
    wlib.attention_prefill(**arguments | changed)


def vllm_tensors(blocks: int = 3) -> dict[str, torch.Tensor]:
    codes, scales = torch.zeros(blocks, 16, 2, 32, dtype=torch.uint8), torch.ones(blocks, 16, 2)
    return {"k": codes, "v": codes.clone(), "k_scale": scales, "v_scale": scales.clone()}


def vllm(**changed: Any) -> None:
    wlib.VllmInt4Cache(**vllm_tensors() | changed)


def vllm_attention(
    blocks: int = 3, place: dict[str, torch.Tensor] | None = None, **changed: Any
) -> None:
    """As `attention`, over blocks of 16 tokens; `place` replaces tensors of a cache that exists."""
    kv = wlib.VllmInt4Cache(**vllm_tensors(blocks))
    for name, tensor in (place or {}).items():
        setattr(kv, name, tensor)
    table = torch.tensor([[0, 1, 2, 0, 1], [2, 0, 0, 0, 0]], dtype=torch.int32)
    attention(**{"kv": kv, "page_table": table} | changed)


def vllm_append(**changed: Any) -> None:
    kv = wlib.VllmInt4Cache(**vllm_tensors())
    tokens = {"k": torch.zeros(5, 2, 64), "v": torch.zeros(5, 2, 64)}
    kv.append(**tokens | {"slot_mapping": torch.arange(5)} | changed)


def append(**changed: Any) -> None:
    kv = changed.pop("kv", wlib.Int4KVCache.allocate(3, 2, 64))
    arguments: dict[str, Any] = {
        "k": torch.zeros(5, 2, 64),
        "v": torch.zeros(5, 2, 64),
        "slot_mapping": torch.arange(5),
    }
    kv.append(**arguments | changed)


def used_cache() -> wlib.Int4KVCache:
    kv = wlib.Int4KVCache.allocate(3, 2, 64)
    kv.append(torch.ones(1, 2, 64), torch.ones(1, 2, 64), torch.tensor([0]))
    return kv


def queries(q: torch.Tensor | None = None, **options: Any) -> None:
    wlib.quantize_q_fp8(torch.zeros(5, 4, 64) if q is None else q, **options)


def contiguous(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "k": torch.zeros(5, 2, 64),
        "v": torch.zeros(5, 2, 64),
        "cu_seqlens_k": ints(0, 5),
    }
    wlib.quantize_kv_int4(**arguments | changed)


def merge(**changed: Any) -> None:
    o, lse = torch.zeros(3, 2, 64), torch.zeros(2, 3)
    wlib.merge_attention_states(**{"o1": o, "lse1": lse, "o2": o, "lse2": lse} | changed)


def attention_module(**changed: Any) -> None:
    names = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "num_blocks": 3}
    wlib.nn.Int4PrefillAttention(**names | changed)


def forward(**changed: Any) -> None:
    """A module's call with five tokens of two sequences."""
    arguments: dict[str, Any] = {
        "q": torch.zeros(5, 4, 64),
        "k": torch.zeros(5, 2, 64),
        "v": torch.zeros(5, 2, 64),
        "cu_seqlens_q": ints(0, 2, 5),
        "max_seqlen_q": 3,
        "seqlens_cached": ints(70, 10),
        "page_table": torch.tensor([[0, 1], [2, 0]], dtype=torch.int32),
    }
    wlib.nn.Int4PrefillAttention(4, 2, 64, 3)(**arguments | changed)


allocate = wlib.Int4KVCache.allocate
SOME = "all of k_new, v_new, k_new_scale, v_new_scale or none, got some of them (argument 'k_new')"

CASES: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (attention, {"q8": torch.zeros(5, 4, 64)}, TypeError,
     "q of dtype torch.float8_e4m3fn, got torch.float32 (argument 'q')"),
    (attention, {"q8": torch.zeros(5, 256, dtype=FP8), "softmax_scale": 1.0}, ValueError,
     "q of shape [tokens, heads, head_dim], got [5, 256] (argument 'q')"),
    (attention, {"q8": torch.zeros(4, 5, 64, dtype=FP8).transpose(0, 1)}, ValueError,
     "contiguous q, got strides [64, 320, 1] (argument 'q')"),
    (attention, {"q8": torch.zeros(5, 4, 96, dtype=FP8)}, ValueError,
     "head_dim of 64, 128 or 256, got 96 (argument 'q')"),
    (attention, {"q_scale": torch.ones(5, 3)}, ValueError,
     "q_scale of shape [5, 4], got [5, 3] (argument 'q_scale')"),
    (attention, {"q_scale": torch.ones(5, 4).double()}, TypeError,
     "q_scale of dtype torch.float32, got torch.float64 (argument 'q_scale')"),
    (attention, {"q8": torch.zeros(5, 3, 64, dtype=FP8), "q_scale": torch.ones(5, 3)}, ValueError,
     "k_cache of shape [blocks, kv_heads, head_dim * 32] or [blocks, block_size, kv_heads, "
     "head_dim / 2], kv_heads dividing 3 query heads, got [3, 2, 2048] (argument 'k_cache')"),
    (attention, {"q8": torch.zeros(5, 34, 64, dtype=FP8), "q_scale": torch.ones(5, 34)}, ValueError,
     "at most 16 query heads per KV head, got 17 (argument 'k_cache')"),
    (attention, {"q8": torch.zeros(5, 4, 128, dtype=FP8)}, ValueError,
     "k_cache of shape [3, 2, 4096], got [3, 2, 2048] (argument 'k_cache')"),
    (attention, {"v": torch.zeros(2, 2, 2048, dtype=torch.uint8)}, ValueError,
     "v_cache of shape [3, 2, 2048], got [2, 2, 2048] (argument 'v_cache')"),
    (attention, {"k_scale": torch.zeros(3, 2, 32)}, ValueError,
     "k_scale of shape [3, 2, 64], got [3, 2, 32] (argument 'k_scale')"),
    (attention, {"cu_seqlens_q": torch.tensor([0, 2, 5])}, TypeError,
     "cu_seqlens_q of dtype torch.int32, got torch.int64 (argument 'cu_seqlens_q')"),
    (attention, {"cu_seqlens_q": ints(1, 2, 5)}, ValueError,
     "cu_seqlens_q to begin with 0, got 1 (argument 'cu_seqlens_q')"),
    (attention, {"cu_seqlens_q": ints(0, 2, 4)}, ValueError,
     "cu_seqlens_q to end with 5, got 4 (argument 'cu_seqlens_q')"),
    (attention, {"cu_seqlens_q": ints(0, 6, 5)}, ValueError,
     "cu_seqlens_q not to decrease, up to 5, got 6 (argument 'cu_seqlens_q')"),
    (attention, {"max_seqlen_q": 2}, ValueError,
     "max_seqlen_q of at least 3, got 2 (argument 'max_seqlen_q')"),
    (attention, {"max_seqlen_q": -1}, ValueError,
     "max_seqlen_q of at least 0, got -1 (argument 'max_seqlen_q')"),
    (attention, {"seqused_k": ints(70, 129)}, ValueError,
     "seqused_k from 0 to 128, the page table's columns times 64, got 129 (argument 'seqused_k')"),
    (attention, {"seqused_k": ints(70)}, ValueError,
     "seqused_k of shape [2], got [1] (argument 'seqused_k')"),
    (attention, {"page_table": torch.tensor([[0, 3], [2, 0]], dtype=torch.int32)}, ValueError,
     "blocks from 0 to 2, got 3 (argument 'page_table')"),
    (attention, {"page_table": ints(0, 1)}, ValueError,
     "page_table of shape [2, 0], got [2] (argument 'page_table')"),
    (attention, {"k_new": torch.zeros(5, 2, 64, dtype=FP8)}, ValueError, SOME),
    (attention, {"sinks": torch.zeros(2)}, ValueError,
     "sinks of shape [4], got [2] (argument 'sinks')"),
    (attention, {"softcap": -1.0}, ValueError,
     "softcap of 0 (none) or more, got -1.000000 (argument 'softcap')"),
    (attention, {"num_splits": -1}, ValueError,
     "num_splits of 0 (automatic) or more, got -1 (argument 'num_splits')"),
    (attention, {"out_dtype": torch.float64}, TypeError,
     f"out_dtype of dtype {FLOATS}, got torch.float64 (argument 'out_dtype')"),
    (append, {"k": torch.zeros(5, 2, 64).double()}, TypeError,
     f"k of dtype {FLOATS}, got torch.float64 (argument 'k')"),
    (append, {"k": torch.zeros(5, 128)}, ValueError,
     "k of shape [tokens, heads, head_dim], got [5, 128] (argument 'k')"),
    (append, {"k": torch.zeros(5, 2, 128)[..., ::2]}, ValueError,
     "k with unit stride in the last dimension, got strides [256, 128, 2] (argument 'k')"),
    (append, {"v": torch.zeros(5, 2, 64).half()}, TypeError,
     "v of dtype torch.float32, got torch.float16 (argument 'v')"),
    (vllm, {"k": torch.zeros(3, 16, 2, 32)}, TypeError,
     "k of dtype torch.uint8, got torch.float32 (argument 'k')"),
    (vllm, {"v_scale": torch.zeros(3, 16, 2).half()}, TypeError,
     "v_scale of dtype torch.float32, got torch.float16 (argument 'v_scale')"),
    (vllm, {"k": torch.zeros(3, 16, 2, 33, dtype=torch.uint8)}, ValueError,
     "k of shape [num_blocks, block_size, num_kv_heads, head_dim / 2] with head_dim of 64, 128 or "
     "256, got [3, 16, 2, 33] (argument 'k')"),
    (vllm, {"v": torch.zeros(3, 16, 1, 32, dtype=torch.uint8)}, ValueError,
     "v of shape [3, 16, 2, 32], got [3, 16, 1, 32] (argument 'v')"),
    (vllm, {"k_scale": torch.zeros(3, 2, 16)}, ValueError,
     "k_scale of shape [3, 16, 2], got [3, 2, 16] (argument 'k_scale')"),
    (wlib.VllmInt4Cache.from_vllm, {"kv_cache": torch.zeros(3, 2, 16, 72)}, TypeError,
     "kv_cache of dtype torch.uint8 or torch.int8, got torch.float32 (argument 'kv_cache')"),
    (wlib.VllmInt4Cache.from_vllm, {"kv_cache": torch.zeros(3, 16, 72).char()}, ValueError,
     "kv_cache of shape [num_blocks, 2, block_size, num_kv_heads, head_dim / 2 + 4] or "
     "[num_blocks, num_kv_heads, block_size, head_dim + 8], got [3, 16, 72] "
     "(argument 'kv_cache')"),
    (wlib.VllmInt4Cache.from_vllm, {"kv_cache": torch.zeros(3, 2, 16, 74).char()[..., :72]},
     ValueError, "rows at multiples of 4 bytes, got strides [2368, 1184, 74, 1] "
     "(argument 'kv_cache')"),
    (vllm_append, {"k": torch.zeros(5, 2, 64).double()}, TypeError,
     "k of dtype torch.bfloat16 or torch.float16 or torch.float32, got torch.float64 "
     "(argument 'k')"),
    (vllm_append, {"v": torch.zeros(5, 2, 64).half()}, TypeError,
     "v of dtype torch.float32, got torch.float16 (argument 'v')"),
    (vllm_append, {"k": torch.zeros(5, 3, 64)}, ValueError,
     "k of shape [T, 2, 64], got [5, 3, 64] (argument 'k')"),
    (vllm_append, {"v": torch.zeros(4, 2, 64)}, ValueError,
     "v of shape [5, 2, 64], got [4, 2, 64] (argument 'v')"),
    (vllm_append, {"slot_mapping": torch.arange(5).int()}, TypeError,
     "slot_mapping of dtype torch.int64, got torch.int32 (argument 'slot_mapping')"),
    (vllm_append, {"slot_mapping": torch.arange(4)}, ValueError,
     "slot_mapping of shape [5], got [4] (argument 'slot_mapping')"),
    (vllm_append, {"slot_mapping": torch.arange(44, 49)}, ValueError,
     "slots below 48, got 48 (argument 'slot_mapping')"),
    (vllm_append, {"v": torch.zeros(5, 2, 64, device="meta")}, ValueError,
     "v on cpu, got meta (argument 'v')"),
    (vllm_attention, {"place": {"v": torch.zeros(3, 16, 1, 32, dtype=torch.uint8)}}, ValueError,
     "v_cache of shape [3, 16, 2, 32], got [3, 16, 1, 32] (argument 'v_cache')"),
    (vllm_attention, {"place": {"k": torch.zeros(3, 0, 2, 32, dtype=torch.uint8)}}, ValueError,
     "k_cache of shape [blocks, kv_heads, head_dim * 32] or [blocks, block_size, kv_heads, "
     "head_dim / 2], kv_heads dividing 4 query heads, got [3, 0, 2, 32] (argument 'k_cache')"),
    (vllm_attention, {"place": {"k": torch.zeros(3, 16, 2, 32).char()}}, TypeError,
     "k_cache of dtype torch.uint8, got torch.int8 (argument 'k_cache')"),
    (vllm_attention, {"place": {"v": torch.zeros(3, 16, 2, 64).byte()[..., ::2]}}, ValueError,
     "v_cache with neighbouring bytes of a head, got strides [2048, 128, 64, 2] "
     "(argument 'v_cache')"),
    (vllm_attention, {"place": {"k_scale": torch.zeros(3, 2, 16)}}, ValueError,
     "k_scale of shape [3, 16, 2], got [3, 2, 16] (argument 'k_scale')"),
    (vllm_attention, {"seqused_k": ints(81, 10)}, ValueError,
     "seqused_k from 0 to 80, the page table's columns times 16, got 81 (argument 'seqused_k')"),
    (vllm_attention, {"blocks": 2}, ValueError,
     "blocks from 0 to 1, got 2 (argument 'page_table')"),
    (append, {"v": torch.zeros(4, 2, 64)}, ValueError,
     "v of shape [5, 2, 64], got [4, 2, 64] (argument 'v')"),
    (append, {"k": torch.zeros(5, 3, 64), "v": torch.zeros(5, 3, 64)}, ValueError,
     "k_cache of shape [3, 3, 2048], got [3, 2, 2048] (argument 'k_cache')"),
    (append, {"slot_mapping": torch.arange(5).int()}, TypeError,
     "slot_mapping of dtype torch.int64, got torch.int32 (argument 'slot_mapping')"),
    (append, {"slot_mapping": torch.arange(4)}, ValueError,
     "slot_mapping of shape [5], got [4] (argument 'slot_mapping')"),
    (append, {"slot_mapping": torch.arange(188, 193)}, ValueError,
     "slots below 192, the cache's blocks times 64, got 192 (argument 'slot_mapping')"),
    (append, {"k_mean": torch.zeros(2, 32)}, ValueError,
     "k_mean of shape [2, 64], got [2, 32] (argument 'k_mean')"),
    (append, {"kv": used_cache(), "k_smooth": torch.ones(2, 64)}, ValueError,
     "k_smooth as the cache was begun with, got another tensor (argument 'k_smooth')"),
    (queries, {"q": torch.zeros(5, 4, 64).int()}, TypeError,
     f"q of dtype {FLOATS}, got torch.int32 (argument 'q')"),
    (queries, {"k_smooth": torch.ones(3, 64)}, ValueError,
     "k_smooth of shape [kv_heads, head_dim], kv_heads dividing 4 query heads, got [3, 64] "
     "(argument 'k_smooth')"),
    (queries, {"cos": torch.ones(5, 32)}, ValueError,
     "both cos and sin or none, got one of them (argument 'sin')"),
    (queries, {"cos": torch.ones(5, 64), "sin": torch.ones(5, 64)}, ValueError,
     "cos of shape [5, 32], got [5, 64] (argument 'cos')"),
    (contiguous, {"k": torch.zeros(5, 128)}, ValueError,
     "k of shape [T, num_kv_heads, head_dim], got [5, 128] (argument 'k')"),
    (contiguous, {"cu_seqlens_k": ints(0, 4)}, ValueError,
     "cu_seqlens_k from 0 to 5, not decreasing, got [0, 4] (argument 'cu_seqlens_k')"),
    (contiguous, {"cu_seqlens_k": torch.tensor([0, 5])}, TypeError,
     "cu_seqlens_k of dtype torch.int32, got torch.int64 (argument 'cu_seqlens_k')"),
    (allocate, {"num_blocks": 0, "num_kv_heads": 1, "head_dim": 64}, ValueError,
     "num_blocks of at least 1, got 0 (argument 'num_blocks')"),
    (allocate, {"num_blocks": 1, "num_kv_heads": 1, "head_dim": 80}, ValueError,
     "head_dim of 64, 128 or 256, got 80 (argument 'head_dim')"),
    (allocate, {"num_blocks": 1, "num_kv_heads": 1, "head_dim": 64, "block_size": 16}, ValueError,
     "block_size of 64, got 16 (argument 'block_size')"),
    (attention_module, {"num_heads": 3}, ValueError,
     "num_heads that num_kv_heads divides, both at least 1, got (3, 2) (argument 'num_heads')"),
    (attention_module, {"num_heads": 34}, ValueError,
     "at most 16 query heads per KV head, got 17 (argument 'num_heads')"),
    (attention_module, {"softcap": -1.0}, ValueError,
     "softcap of 0 (none) or more, got -1.0 (argument 'softcap')"),
    (attention_module, {"new_keys": "int8"}, ValueError,
     "'int4' or 'fp8', got 'int8' (argument 'new_keys')"),
    (attention_module, {"sinks": torch.zeros(4).half()}, TypeError,
     "sinks of dtype torch.float32, got torch.float16 (argument 'sinks')"),
    (attention_module, {"k_mean": torch.zeros(4, 64)}, ValueError,
     "k_mean of shape [2, 64], got [4, 64] (argument 'k_mean')"),
    (forward, {"q": torch.zeros(5, 256)}, ValueError,
     "q of shape [T, 4, 64], got [5, 256] (argument 'q')"),
    (forward, {"q": torch.zeros(5, 4, 64).double()}, TypeError,
     "q of dtype torch.float32 or torch.float16 or torch.bfloat16, got torch.float64 "
     "(argument 'q')"),
    (forward, {"k": torch.zeros(5, 2, 64).half()}, TypeError,
     "k of dtype torch.float32, got torch.float16 (argument 'k')"),
    (forward, {"v": torch.zeros(4, 2, 64)}, ValueError,
     "v of shape [5, 2, 64], got [4, 2, 64] (argument 'v')"),
    (forward, {"v": torch.zeros(5, 2, 64, device="meta")}, ValueError,
     "v on cpu, got meta (argument 'v')"),
    (forward, {"cu_seqlens_q": torch.tensor([0, 2, 5])}, TypeError,
     "cu_seqlens_q of dtype torch.int32, got torch.int64 (argument 'cu_seqlens_q')"),
    (forward, {"cu_seqlens_q": ints()}, ValueError,
     "cu_seqlens_q of shape [batch + 1], got [0] (argument 'cu_seqlens_q')"),
    (forward, {"cu_seqlens_q": ints(0, 2, 4)}, ValueError,
     "cu_seqlens_q from 0 to 5, not decreasing, got [0, 2, 4] (argument 'cu_seqlens_q')"),
    (forward, {"max_seqlen_q": 2}, ValueError,
     "max_seqlen_q of at least 3, got 2 (argument 'max_seqlen_q')"),
    (forward, {"seqlens_cached": ints(70)}, ValueError,
     "seqlens_cached of shape [2], got [1] (argument 'seqlens_cached')"),
    (forward, {"seqlens_cached": ints(126, 126)}, ValueError,
     "tokens from 0 to 128, the page table's columns times 64, got [126] cached and [3] new ones "
     "(argument 'seqlens_cached')"),
    (forward, {"page_table": ints(0, 1)}, ValueError,
     "page_table of shape [2, max_blocks], got [2] (argument 'page_table')"),
    (forward, {"page_table": torch.tensor([[0, 1], [3, 9]], dtype=torch.int32)}, ValueError,
     "blocks from 0 to 2, got 3 (argument 'page_table')"),
    (forward, {"num_splits": -1}, ValueError,
     "num_splits of 0 (automatic) or more, got -1 (argument 'num_splits')"),
    (merge, {"o1": torch.zeros(3, 128)}, ValueError,
     "o1 of shape [T, H, D], got [3, 128] (argument 'o1')"),
    (merge, {"lse2": torch.zeros(3, 2)}, ValueError,
     "lse2 of shape [2, 3], got [3, 2] (argument 'lse2')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "kind", "message"), CASES)
def test_message(
    call: Callable[..., Any], arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=r"^wlib\S+ expected " + re.escape(message) + "$"):
        call(**arguments)


def test_a_refused_append_writes_nothing() -> None:
    kv = wlib.Int4KVCache.allocate(1, 2, 64)
    with pytest.raises(ValueError, match="slot_mapping"):
        kv.append(torch.ones(2, 2, 64), torch.ones(2, 2, 64), torch.tensor([0, 64]))
    assert not kv.k.any()
    assert not kv.k_scale.any()
