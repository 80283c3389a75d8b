"""Fake kernels of the ops on random bases, and the gradient of ``prng_expand``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib


@torch.library.register_fake("wlib::prng_expand")
def _prng_expand(
    coef: Tensor,
    shape: Sequence[int],
    seed: int,
    dist: str,
    tensor_id: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.empty(tuple(shape), dtype=out_dtype or coef.dtype, device=coef.device)


@torch.library.register_fake("wlib::prng_project")
def _prng_project(values: Tensor, count: int, seed: int, dist: str, tensor_id: int) -> Tensor:
    dtype = torch.float64 if values.dtype is torch.float64 else torch.float32
    return torch.empty(count, dtype=dtype, device=values.device)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    coef, _, *ctx.key = inputs[:5]
    ctx.count = len(coef)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    d_coef = torch.ops.wlib.prng_project(grad.contiguous(), ctx.count, *ctx.key)
    return d_coef, None, None, None, None, None


torch.library.register_autograd("wlib::prng_expand", _backward, setup_context=_setup)
