"""Fake kernels and gradients of the ops on shared atoms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _load, layout  # noqa: F401  registers torch.ops.wlib
from ..int4fp8 import PackedInt4Weight


@torch.library.register_fake("wlib::atoms_reconstruct")
def _reconstruct(
    atoms: Tensor,
    coef: Tensor,
    base: Tensor | None = None,
    residual_a: Tensor | None = None,
    residual_b: Tensor | None = None,
    *,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    shape = (coef.shape[0], *atoms.shape[1:])
    return torch.empty(shape, dtype=out_dtype or atoms.dtype, device=atoms.device)


@torch.library.register_fake("wlib::atoms_reconstruct_backward")
def _reconstruct_backward(
    grad: Tensor, atoms: Tensor, coef: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(atoms), torch.empty_like(coef)


@torch.library.register_fake("wlib::atoms_combine")
def _combine(tensors: list[Tensor], coef: Tensor) -> list[Tensor]:
    width = len(tensors) // coef.shape[1]
    return [torch.empty_like(t) for t in tensors[:width] * coef.shape[0]]


def _save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    atoms, coef, base, residual_a, residual_b = inputs
    ctx.save_for_backward(atoms, coef, residual_a, residual_b)
    ctx.base_dtype = None if base is None else base.dtype
    ctx.scale = keyword_only_inputs["scale"]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of atoms and coef in one pass; of the residual by two products per layer."""
    atoms, coef, a, b = ctx.saved_tensors
    grad = grad.contiguous()
    # The dispatcher leaves out trailing arguments that are None.
    wanted = (*ctx.needs_input_grad, False, False, False)
    found: list[Tensor | None] = [None] * 5
    if wanted[0] or wanted[1]:
        both = torch.ops.wlib.atoms_reconstruct_backward(grad, atoms, coef, scale=ctx.scale)
        found[:2] = both
    if wanted[2]:
        found[2] = grad.to(ctx.base_dtype)
    if wanted[3] or wanted[4]:
        rows = grad.flatten(2) if grad.dim() > 2 else grad[..., None]
        rows = rows.to(a.dtype)
        found[3:] = torch.bmm(rows, b.mT), torch.bmm(a.mT, rows)
    return tuple(found[: len(ctx.needs_input_grad)])


torch.library.register_autograd("wlib::atoms_reconstruct", _gradients, setup_context=_save)


@torch.library.register_fake("wlib::atoms_step_")
def _atoms_step(
    grad: Tensor,
    atoms: Tensor,
    coef: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor | None,
    *,
    rule: str,
    scale: float = 1.0,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
) -> Tensor:
    return torch.empty_like(coef)


@torch.library.register_fake("wlib::atoms_linear")
def _linear(
    x: Tensor,
    atoms: Tensor,
    coef: Tensor,
    bias: Tensor | None = None,
    base: Tensor | None = None,
    *,
    n: int | None = None,
    group_size: int | None = None,
    layout_version: int = layout.LAYOUT_VERSION,
) -> Tensor:
    return x.new_empty(x.shape[0], atoms.shape[1] if n is None else n)


def _save_linear(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor
) -> None:
    # The dispatcher leaves out trailing arguments that are None.
    x, atoms, coef, _, base = (*inputs, None, None)[:5]
    ctx.save_for_backward(x, atoms, coef, base)
    ctx.packing = keyword_only_inputs["n"], keyword_only_inputs["group_size"]


def _linear_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, atoms, coef, base = ctx.saved_tensors
    wanted = (*ctx.needs_input_grad, False, False)[:5]
    n, group_size = ctx.packing
    if n is not None:  # INT4 ones
        sizes = {"n": n, "k": x.shape[1], "group_size": group_size, "has_channel_scale": True}
        each = (PackedInt4Weight(one, **sizes).unpack() for one in atoms)
        atoms = torch.stack([one.dequantize() for one in each])
    atoms = atoms.to(x.dtype)  # FP8 ones, too
    found = (_shared_gradients if coef.dim() == 1 else _own_gradients)(
        grad.contiguous(), x, atoms, coef, base, wanted
    )
    if wanted[3]:
        found[3] = grad.sum(0)
    return tuple(found[: len(ctx.needs_input_grad)])


def _shared_gradients(
    grad: Tensor,
    x: Tensor,
    atoms: Tensor,
    coef: Tensor,
    base: Tensor | None,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Of x through the weight, of everything else through the gradient of the weight."""
    found: list[Tensor | None] = [None] * 5
    if wanted[0]:
        bases = None if base is None else base[None]
        found[0] = grad @ torch.ops.wlib.atoms_reconstruct(atoms, coef[None], bases)[0]
    if wanted[1] or wanted[2] or wanted[4]:
        of_weight = grad.T @ x
        found[4] = of_weight if wanted[4] else None
    if wanted[1] or wanted[2]:
        op = torch.ops.wlib.atoms_reconstruct_backward
        found[1], of_coef = op(of_weight[None], atoms, coef[None])
        found[2] = of_coef[0]
    return found


def _own_gradients(
    grad: Tensor,
    x: Tensor,
    atoms: Tensor,
    coef: Tensor,
    base: Tensor | None,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Coefficients per token: the atoms side by side are one matrix [S * N, K]."""
    found: list[Tensor | None] = [None] * 5
    tokens, (count, rows, columns) = len(x), atoms.shape
    matrix = atoms.reshape(count * rows, columns)
    if wanted[0] or wanted[1]:  # the gradients of each atom's own product
        scaled = coef[..., None] * grad[:, None]
        scaled = scaled.to(x.dtype).view(tokens, count * rows)
    if wanted[0]:
        found[0] = scaled @ matrix if base is None else torch.addmm(grad @ base, scaled, matrix)
    if wanted[1]:
        found[1] = (scaled.T @ x).view(atoms.shape)
    if wanted[2]:
        products = (x @ matrix.T).view(tokens, count, rows)
        found[2] = (products.to(coef.dtype) * grad[:, None]).sum(2)
    if wanted[4]:
        found[4] = grad.T @ x
    return found


torch.library.register_autograd("wlib::atoms_linear", _linear_gradients, setup_context=_save_linear)
