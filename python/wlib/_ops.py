"""Fake kernels: what ``torch.compile`` and ``torch.export`` know of each op without running it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _load  # noqa: F401  registers torch.ops.wlib


@torch.library.register_fake("wlib::fp8_quantize")
def _fp8_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return codes, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


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
