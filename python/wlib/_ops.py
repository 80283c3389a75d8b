"""Fake kernels: what ``torch.compile`` and ``torch.export`` know of each op without running it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _load  # noqa: F401  registers torch.ops.wlib


def sums_shape(shape: torch.Size, group_size: int) -> tuple[int, int]:
    """Groups of at most 128 columns, and the tokens of x rounded up to a multiple of 4."""
    *lead, k = shape
    return -(-k // min(group_size, 128)), -(-math.prod(lead) // 4) * 4


@torch.library.register_fake("wlib::fp8_quantize")
def _fp8_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return codes, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


@torch.library.register_fake("wlib::fp8_group_sums")
def _fp8_group_sums(xq: Tensor, group_size: int) -> Tensor:
    return xq.new_empty(sums_shape(xq.shape, group_size), dtype=torch.float32)


@torch.library.register_fake("wlib::int4fp8_gemm")
def _int4fp8_gemm(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout_version: int = 1,
) -> Tensor:
    return torch.empty((*x.shape[:-1], n), dtype=out_dtype or torch.bfloat16, device=x.device)


@torch.library.register_fake("wlib::int4fp8_gemm.out")
def _int4fp8_gemm_out(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    layout_version: int = 1,
    out: Tensor,
) -> None:
    pass


@torch.library.register_fake("wlib::append_kv_int4")
def _append_kv_int4(
    k: Tensor,
    v: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    *,
    k_mean: Tensor | None = None,
    k_smooth: Tensor | None = None,
) -> None:
    pass


@torch.library.register_fake("wlib::quantize_q_fp8")
def _quantize_q_fp8(
    q: Tensor,
    *,
    k_smooth: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    codes = torch.empty(q.shape, dtype=torch.float8_e4m3fn, device=q.device)
    return codes, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)


@torch.library.register_fake("wlib::attention_prefill")
def _attention_prefill(
    q: Tensor, *tensors: Tensor, out_dtype: torch.dtype | None = None, **options: object
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=out_dtype or torch.bfloat16, device=q.device)
    return out, torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
