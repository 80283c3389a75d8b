"""Attention over vLLM's cache on the GPU: the problems of the simulator and longer ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from prefill_problems import check_result
from test_prefill import Sequences
from vllm_problems import PLACES, allocate, make


def move(cache: Tensor) -> Tensor:
    """On the GPU, at the same strides."""
    moved = torch.empty_strided(cache.shape, cache.stride(), dtype=cache.dtype, device="cuda")
    return moved.copy_(cache)


def attention(s: Sequences, **options: Any) -> tuple[Tensor, Tensor]:
    tensors = (s.kv.k, s.kv.v, s.kv.k_scale, s.kv.v_scale)
    kv = wlib.VllmInt4Cache(*(move(tensor) for tensor in tensors))
    given = s.arguments | options
    arguments = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in given.items()}
    out, lse = wlib.attention_prefill(s.q8.cuda(), kv, **arguments)
    return out.cpu(), lse.cpu()


def check(s: Sequences, **options: Any) -> None:
    check_result(s, *attention(s, **options), **options)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (16, 1), (3, 1)])
def test_causal(dim: int, heads: int, kv_heads: int, half: bool) -> None:
    for queries, cached in (([65, 1, 7], [65, 64, 200]), ([300, 0, 500], [1000, 7, 3000])):
        s = make(queries, cached, heads=heads, kv_heads=kv_heads, dim=dim)
        check(s, allow_fp16_scores=half)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("block_size", [16, 48, 64, 256])
def test_blocks_of_any_size_anywhere(place: str, block_size: int) -> None:
    s = make([3, 0, 70, 5], [70, 7, 0, 2700], block_size=block_size, place=place, dim=128)
    check(s)
    check(s, window_size=(100, 0), num_splits=3)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_new_keys_sinks_and_splits(dim: int) -> None:
    s = make([70, 300], [1000, 365], new=True, dim=dim)
    for splits in (1, 2, 32):
        check(s, sinks=torch.linspace(-1, 1, 4), num_splits=splits)
    check(s, softcap=5.0, window_size=(20, 0))


def test_runs_agree_bit_for_bit() -> None:
    s = make([300, 500], [1000, 3000], dim=128, new=True)
    first, first_lse = attention(s)
    for _ in range(5):
        out, lse = attention(s)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)


def test_append_writes_what_the_cpu_writes() -> None:
    """But for codes within a rounding of the middle between two."""
    torch.manual_seed(0)
    k, v = torch.randn(2, 300, 2, 128)
    slots = torch.randperm(320)[:300]
    here = allocate("heads", 20, 16, 2, 128)
    there = wlib.VllmInt4Cache(*(move(t) for t in (here.k, here.v, here.k_scale, here.v_scale)))
    here.append(k, v, slots)
    there.append(k.cuda(), v.cuda(), slots.cuda())
    for a, b in zip(here.dequantize(), there.dequantize(), strict=True):
        a, b = a[slots], b.cpu()[slots]
        assert (a != b).double().mean() < 1e-3


def test_rows_that_are_not_aligned_are_refused() -> None:
    s = make([3], [16], dim=64)
    rows = torch.zeros(3, 16, 2, 34, dtype=torch.uint8, device="cuda")[..., :32]
    tensors = (rows, rows, torch.ones(3, 16, 2).cuda(), torch.ones(3, 16, 2).cuda())
    kv = wlib.VllmInt4Cache(*tensors)
    arguments = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in s.arguments.items()}
    with pytest.raises(ValueError, match=r"k_cache with rows at multiples of 4 bytes, got rows"):
        wlib.attention_prefill(s.q8.cuda(), kv, **arguments)
