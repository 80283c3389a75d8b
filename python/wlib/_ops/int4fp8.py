"""Fake kernels of the INT4 x FP8 matmuls and their quantisers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib


def _sums_shape(shape: torch.Size, group_size: int) -> tuple[int, int]:
    """Groups of at most 128 columns, and the tokens of x rounded up to a multiple of 4."""
    *lead, k = shape
    return -(-k // min(group_size, 128)), -(-math.prod(lead) // 4) * 4


@torch.library.register_fake("wlib::fp8_quantize")
def _fp8_quantize(x: Tensor, *, sums_group: int | None = None) -> list[Tensor]:
    return _quantized(x, x.shape, sums_group)


@torch.library.register_fake("wlib::rms_norm_fp8_quantize")
def _rms_norm_fp8_quantize(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    sums_group: int | None = None,
) -> list[Tensor]:
    outputs = _quantized(x, x.shape, sums_group)
    if residual is not None:
        outputs.append(torch.empty(x.shape, dtype=x.dtype, device=x.device))
    return outputs


@torch.library.register_fake("wlib::silu_mul_fp8_quantize")
def _silu_mul_fp8_quantize(
    gate_up: Tensor, *, interleaved: bool = False, sums_group: int | None = None
) -> list[Tensor]:
    *lead, columns = gate_up.shape
    return _quantized(gate_up, torch.Size((*lead, columns // 2)), sums_group)


def _quantized(like: Tensor, shape: torch.Size, sums_group: int | None) -> list[Tensor]:
    """Codes of this shape, scales and, if asked, group sums."""
    outputs = [
        torch.empty(shape, dtype=torch.float8_e4m3fn, device=like.device),
        torch.empty(shape[:-1], dtype=torch.float32, device=like.device),
    ]
    if sums_group is not None:
        sums = _sums_shape(shape, sums_group)
        outputs.append(torch.empty(sums, dtype=torch.float32, device=like.device))
    return outputs


@torch.library.register_fake("wlib::fp8_group_sums")
def _fp8_group_sums(xq: Tensor, group_size: int) -> Tensor:
    return xq.new_empty(_sums_shape(xq.shape, group_size), dtype=torch.float32)


@torch.library.register_fake("wlib::int4fp8_gemm")
def _int4fp8_gemm(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout_version: int = 1,
    prefetch_weight: bool = False,
) -> Tensor:
    shape = (*x.shape[:-1], n // 2 if activation == "silu_mul" else n)
    return torch.empty(shape, dtype=out_dtype or torch.bfloat16, device=x.device)


@torch.library.register_fake("wlib::int4fp8_gemm.out")
def _int4fp8_gemm_out(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
    layout_version: int = 1,
    prefetch_weight: bool = False,
    out: Tensor,
) -> None:
    pass


@torch.library.register_fake("wlib::int4fp8_gemm_grouped")
def _int4fp8_gemm_grouped(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    expert_offsets: Tensor,
    *,
    n: int,
    group_size: int,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    **options: Tensor | int | None,
) -> Tensor:
    shape = (x.shape[0], n // 2 if activation == "silu_mul" else n)
    return torch.empty(shape, dtype=out_dtype or torch.bfloat16, device=x.device)


@torch.library.register_fake("wlib::int4fp8_gemm_grouped.out")
def _int4fp8_gemm_grouped_out(*arguments: Tensor, **options: Tensor | int | str | None) -> None:
    pass
