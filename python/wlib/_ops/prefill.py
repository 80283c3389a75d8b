"""Fake kernels of attention over INT4 keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib


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
