"""Sequences in a cache of vLLM's layout, pages in random order, as tests of attention take them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import wlib
from test_prefill import Sequences

PLACES = ("heads", "tokens", "pairs", "apart")


def allocate(
    place: str, blocks: int, block_size: int, kv_heads: int, dim: int
) -> wlib.VllmInt4Cache:
    """A cache whose rows lie where vLLM may put them, filled with bytes nobody may use.

    heads, tokens: a key before its value, the tokens of a head together or the heads of a token.
    pairs: all keys of a block before its values. apart: four tensors.
    """
    row = dim // 2 + 4
    if place == "apart":
        shape = (blocks, block_size, kv_heads)
        codes = torch.full((2, *shape, dim // 2), 255, dtype=torch.uint8)
        scales = torch.full((2, *shape), math.nan)
        return wlib.VllmInt4Cache(codes[0], codes[1], scales[0], scales[1])
    shapes = {
        "heads": (blocks, kv_heads, block_size, 2 * row),
        "tokens": (blocks, block_size, kv_heads, 2 * row),
        "pairs": (blocks, 2, block_size, kv_heads, row),
    }
    whole = torch.full(shapes[place], 255, dtype=torch.uint8)  # scales of NaN
    return wlib.VllmInt4Cache.from_vllm(whole.transpose(1, 2) if place == "tokens" else whole)


def make(
    queries: list[int],
    cached: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    block_size: int = 16,
    place: str = "heads",
    new: bool = False,
    seed: int = 0,
) -> Sequences:
    """As test_prefill.make; keys and values of the answer are the rotated ones."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    starts = torch.tensor([0, *queries]).cumsum(0).int()
    blocks = [-(-n // block_size) for n in cached]
    pages = torch.randperm(sum(blocks) + 2, generator=rng)
    table = torch.full((len(queries), max([1, *blocks])), -1, dtype=torch.int32)
    slots = []
    for i, count in enumerate(blocks):
        own, pages = pages[:count], pages[count:]
        table[i, :count] = own
        position = torch.arange(cached[i])
        slots.append(own[position // block_size] * block_size + position % block_size)
    kv = allocate(place, sum(blocks) + 2, block_size, kv_heads, dim)
    k, v = normal(sum(cached), kv_heads, dim), normal(sum(cached), kv_heads, dim) + 0.5
    kv.append(k, v, torch.cat([torch.empty(0, dtype=torch.int64), *slots]))
    q8, q_scale = wlib.quantize_q_fp8(kv.rotate_queries(normal(sum(queries), heads, dim)))
    arguments: dict[str, Any] = {
        "q_scale": q_scale,
        "cu_seqlens_q": starts,
        "max_seqlen_q": max([0, *queries]),
        "seqused_k": torch.tensor(cached, dtype=torch.int32),
        "page_table": table,
        "out_dtype": torch.float32,
    }
    all_k, all_v = kv.dequantize()
    keys, values = [all_k[s].double() for s in slots], [all_v[s].double() for s in slots]
    for name, of_sequences in (("k", keys), ("v", values)) if new else ():
        codes, scale = wlib.fp8_quantize(normal(sum(queries), kv_heads, dim) * dim**0.5)
        arguments |= {f"{name}_new": codes, f"{name}_new_scale": scale}
        fresh = codes.double() * scale.double()[..., None]
        for i, own in enumerate(of_sequences):
            of_sequences[i] = torch.cat((own, fresh[int(starts[i]) : int(starts[i + 1])]))
    return Sequences(q8, q_scale, kv, arguments, keys, values)  # type: ignore[arg-type]
