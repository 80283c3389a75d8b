"""Fake kernels and gradients of the ops on sparse matrices in tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib


@torch.library.register_fake("wlib::tile_sparse_matmul")
def _sparse_matmul(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    offsets: Tensor,
    rows: int,
    columns: int,
    transposed: bool = False,
    base: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], columns if transposed else rows))


@torch.library.register_fake("wlib::tile_sampled_matmul")
def _sampled_matmul(
    dy: Tensor,
    x: Tensor,
    positions: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return x.new_empty(positions.shape, dtype=out_dtype or x.dtype)


def _save_matmul(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # The dispatcher leaves out trailing arguments that have their default.
    x, values, positions, offsets, *rest = inputs
    ctx.save_for_backward(x, values, positions, offsets)
    ctx.rows, ctx.columns, ctx.transposed = (*rest, False)[:3]


def _matmul_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, values, positions, offsets = ctx.saved_tensors
    # Here, too, trailing defaults are left out.
    wanted = (*ctx.needs_input_grad, False, False, False)
    places = positions, offsets
    found: list[Any] = [None] * 9
    grad = grad.contiguous()
    if wanted[0]:
        found[0] = torch.ops.wlib.tile_sparse_matmul(
            grad, values, *places, ctx.rows, ctx.columns, not ctx.transposed
        )
    if wanted[1]:
        dy, own = (x, grad) if ctx.transposed else (grad, x)
        found[1] = torch.ops.wlib.tile_sampled_matmul(dy, own, *places, values.dtype)
    if wanted[7]:
        found[7] = grad
    if wanted[8]:
        found[8] = grad.flatten(0, -2).sum(0) if grad.dim() > 1 else grad
    return tuple(found[: len(ctx.needs_input_grad)])


def _save_sampled(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _sampled_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dy, x, positions, offsets = ctx.saved_tensors
    shape = dy.shape[-1], x.shape[-1]
    op = torch.ops.wlib.tile_sparse_matmul
    grad = grad.contiguous()
    found: list[Any] = [None] * len(ctx.needs_input_grad)
    if ctx.needs_input_grad[0]:
        found[0] = op(x, grad, positions, offsets, *shape)
    if ctx.needs_input_grad[1]:
        found[1] = op(dy, grad, positions, offsets, *shape, True)
    return tuple(found)


torch.library.register_autograd(
    "wlib::tile_sparse_matmul", _matmul_gradients, setup_context=_save_matmul
)
torch.library.register_autograd(
    "wlib::tile_sampled_matmul", _sampled_gradients, setup_context=_save_sampled
)
