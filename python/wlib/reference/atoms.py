"""Float64 reference of the ops on shared atoms, sharing no code with the ops it judges."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

F32_EPS = 2.0**-24  # largest relative error of one float32 rounding


class Reference(NamedTuple):
    """Exact result and the sum of the magnitudes of what is added up, float64 of one shape each."""

    value: Tensor
    magnitude: Tensor

    def bound(self, terms: int, dtype: torch.dtype) -> Tensor:
        """Largest error of `terms` additions in float32 in any order and one final rounding.

        A term sees four more roundings: its product, the scale, the base and the residual.
        """
        accumulated = (terms + 4) * F32_EPS * self.magnitude
        info = torch.finfo(dtype)
        rounding = (self.value.abs() + accumulated) * (info.eps / 2)
        return accumulated + rounding.clamp_min(info.smallest_normal * info.eps / 2)


def _per_element(coef: Tensor, atoms: Tensor) -> Tensor:
    """coef as [L, S, shape[0] or 1, 1, ...]."""
    rows = coef.double() if coef.dim() == 3 else coef.double()[..., None]
    return rows.reshape(*rows.shape, *[1] * (atoms.dim() - 2))


def reconstruct(
    atoms: Tensor,
    coef: Tensor,
    base: Tensor | None = None,
    residual: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
) -> Reference:
    """W[l] = base[l] + scale * sum_s coef[l, s] * atoms[s] + A[l] B[l]."""
    terms = _per_element(coef, atoms) * atoms.double() * scale
    value, magnitude = terms.sum(1), terms.abs().sum(1)
    if base is not None:
        value, magnitude = value + base.double(), magnitude + base.double().abs()
    if residual is not None:
        a, b = (t.double() for t in residual)
        value = value + (a @ b).view_as(value)
        magnitude = magnitude + (a.abs() @ b.abs()).view_as(value)
    return Reference(value, magnitude)


def reconstruct_backward(
    grad: Tensor, atoms: Tensor, coef: Tensor, scale: float = 1.0
) -> tuple[Reference, Reference]:
    """Gradients of atoms and of coef, of the sum of grad * W."""
    spread = _per_element(coef, atoms) * scale
    terms = spread * grad.double()[:, None]
    of_atoms = Reference(terms.sum(0), terms.abs().sum(0))
    products = grad.double()[:, None] * atoms.double() * scale
    kept = coef.dim()  # [L, S] or [L, S, rows]
    rest = list(range(kept, products.dim()))
    if not rest:
        return of_atoms, Reference(products, products.abs())
    return of_atoms, Reference(products.sum(rest), products.abs().sum(rest))


def linear(
    x: Tensor,
    atoms: Tensor,
    coef: Tensor,
    bias: Tensor | None = None,
    base: Tensor | None = None,
) -> Reference:
    """y[m] = (base + sum_s c[m, s] atoms[s]) x[m] + bias, coef being [S] or [M, S]."""
    c = coef.double().expand(len(x), len(atoms))
    operands = c, atoms.double(), x.double()

    def multiplied(c: Tensor, atoms: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("ms,smn->mn", c, x @ atoms.mT)

    value, magnitude = multiplied(*operands), multiplied(*(t.abs() for t in operands))
    if base is not None:
        value = value + x.double() @ base.double().T
        magnitude = magnitude + x.double().abs() @ base.double().abs().T
    if bias is not None:
        value, magnitude = value + bias.double(), magnitude + bias.double().abs()
    return Reference(value, magnitude)


def combine(lists: list[list[Tensor]], coef: Tensor) -> list[list[Reference]]:
    """outs[p][t] = sum_s coef[p, s] * lists[s][t]."""
    columns = [torch.stack(list(column)).double() for column in zip(*lists, strict=True)]
    outs = []
    for weights in coef.double():
        spread = [weights.view(-1, *[1] * (c.dim() - 1)) * c for c in columns]
        outs.append([Reference(t.sum(0), t.abs().sum(0)) for t in spread])
    return outs
