"""Fake kernel and gradient of ``torch.ops.wlib.rebuild``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib


class Form(IntEnum):
    """How a layer follows from its operands; the values of RebuildForm in params/rebuild.h."""

    LOW_RANK = 0
    HADAMARD = 1
    KRON = 2
    BLOCK_AFFINE = 3

    @property
    def operands(self) -> int:
        """How many operands a layer of this form has."""
        return (2, 4, 2, 1)[self]


def _per_layer(forms: Sequence[int], operands: Sequence[Any]) -> Iterator[tuple[Form, list[Any]]]:
    at = 0
    for form in map(Form, forms):
        yield form, list(operands[at : at + form.operands])
        at += form.operands


def _shape(form: Form, operands: Sequence[Tensor]) -> tuple[int, int]:
    """Shape of a layer without a base; a block_affine layer has one."""
    a, b = operands[:2]
    if form is Form.KRON:
        return a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]
    return a.shape[0], b.shape[1]


@torch.library.register_fake("wlib::rebuild")
def _rebuild(
    w0: list[Tensor],
    operands: list[Tensor],
    forms: list[int],
    scales: list[float],
    *,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    like = operands[0] if operands else None
    outs = []
    for i, (form, own) in enumerate(_per_layer(forms, operands)):
        base = w0[i] if w0 else None
        shape = _shape(form, own) if base is None else base.shape
        dtype = out_dtype or (like if base is None else base).dtype  # type: ignore[union-attr]
        outs.append(torch.empty(shape, dtype=dtype, device=own[0].device))
    return outs


@torch.library.register_fake("wlib::rebuild.out")
def _rebuild_out(
    w0: list[Tensor],
    operands: list[Tensor],
    forms: list[int],
    scales: list[float],
    *,
    seed: int | None = None,
    out: list[Tensor],
) -> None:
    pass


def _setup(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    w0, operands, forms, scales = inputs
    ctx.forms, ctx.scales, ctx.bases = forms, scales, len(w0)
    ctx.base_dtypes = [w.dtype for w in w0]
    # Only the gradient of a block_affine layer needs its base.
    blocks = [w for w, form in zip(w0, forms, strict=False) if form == Form.BLOCK_AFFINE]
    ctx.save_for_backward(*operands, *blocks)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    count = sum(Form(form).operands for form in ctx.forms)
    operands, blocks = ctx.saved_tensors[:count], list(ctx.saved_tensors[count:])
    layers = zip(_per_layer(ctx.forms, operands), ctx.scales, grads, strict=True)
    d_w0: list[Tensor] = []
    d_operands: list[Tensor] = []
    for (form, own), scale, grad in layers:
        own = [operand.to(_compute_dtype(operand)) for operand in own]
        g = grad.to(own[0].dtype).reshape(grad.shape[0], -1)
        if form is Form.BLOCK_AFFINE:
            base = blocks.pop(0)
            d_base, *d_own = _block_affine_gradients(g, scale, base.to(g.dtype), *own)
        else:
            d_base, d_own = g, _GRADIENTS[form](g * scale, *own)
        d_operands += d_own
        if ctx.bases:
            d_w0.append(d_base.reshape(grad.shape).to(ctx.base_dtypes[len(d_w0)]))
    d_operands = [d.to(o.dtype) for d, o in zip(d_operands, operands, strict=True)]
    return d_w0, d_operands, None, None


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _low_rank_gradients(g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    return [g @ b.T, a.T @ g]


def _hadamard_gradients(g: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> list[Tensor]:
    first, second = g * (a2 @ b2), g * (a1 @ b1)
    return _low_rank_gradients(first, a1, b1) + _low_rank_gradients(second, a2, b2)


def _kron_gradients(g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    blocks = g.view(a.shape[0], b.shape[0], a.shape[1], b.shape[1])
    return [torch.einsum("ipjq,pq->ij", blocks, b), torch.einsum("ipjq,ij->pq", blocks, a)]


def _block_affine_gradients(g: Tensor, scale: float, base: Tensor, blocks: Tensor) -> list[Tensor]:
    """Of the base and the blocks: w0_ij + scale * (w0_ij B_i + B_i), i counts blocks of rows."""
    rows, r, _ = blocks.shape
    g4, w4 = g.view(rows, r, -1, r), base.view(rows, r, -1, r)
    d_base = g4 + scale * torch.einsum("ipjq,ikq->ipjk", g4, blocks)
    d_blocks = scale * (torch.einsum("ipjk,ipjq->ikq", w4, g4) + g4.sum(dim=2))
    return [d_base, d_blocks]


_GRADIENTS: dict[Form, Any] = {
    Form.LOW_RANK: _low_rank_gradients,
    Form.HADAMARD: _hadamard_gradients,
    Form.KRON: _kron_gradients,
}

torch.library.register_autograd("wlib::rebuild", _backward, setup_context=_setup)
