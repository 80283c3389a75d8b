"""Float64 reference of low rank plus sparse layers, sharing no code with the ops it judges.

SLTrain's formula: the dense weight is made, the values are scattered into it by their flat indices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .atoms import Reference


def weight(
    b: Tensor, a: Tensor, values: Tensor, indices: Tensor, scale: float, *, magnitude: bool = False
) -> Tensor:
    """W = scale * B A + S, or with `magnitude` the same of absolute values."""
    parts = [t.double().abs() if magnitude else t.double() for t in (b, a, values)]
    w = (abs(scale) if magnitude else scale) * (parts[0] @ parts[1])
    w.view(-1).scatter_add_(0, indices, parts[2])
    return w


def linear(
    x: Tensor,
    b: Tensor,
    a: Tensor,
    values: Tensor,
    indices: Tensor,
    scale: float,
    bias: Tensor | None = None,
) -> Reference:
    """Y = x W^T + bias."""
    w, sizes = (
        weight(b, a, values, indices, scale, magnitude=magnitude) for magnitude in (False, True)
    )
    y, size = x.double() @ w.T, x.double().abs() @ sizes.T
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    return Reference(y, size)


def gradients(
    dy: Tensor, x: Tensor, b: Tensor, a: Tensor, values: Tensor, indices: Tensor, scale: float
) -> tuple[Reference, Reference, Reference, Reference]:
    """Of x, B, A and the values, by way of the dense gradient of W."""

    def chain(take: bool) -> list[Tensor]:
        dy64, x64, b64, a64 = ((t.double().abs() if take else t.double()) for t in (dy, x, b, a))
        w = weight(b, a, values, indices, scale, magnitude=take)
        dw = dy64.flatten(0, -2).T @ x64.flatten(0, -2)
        s = abs(scale) if take else scale
        return [dy64 @ w, s * dw @ a64.T, s * b64.T @ dw, dw.reshape(-1)[indices]]

    return tuple(map(Reference, chain(take=False), chain(take=True)))  # type: ignore[return-value]


def sparse(values: Tensor, indices: Tensor, rows: int, columns: int) -> Tensor:
    """S alone, float64 [rows, columns]."""
    flat = torch.zeros(rows * columns, dtype=torch.float64)
    return flat.scatter_add_(0, indices, values.double()).view(rows, columns)
