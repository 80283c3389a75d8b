"""Problems on shared atoms whose true result every route must hit bit for bit, and random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Problem:
    """Arguments of atoms_reconstruct, and a gradient of its result."""

    atoms: Tensor
    coef: Tensor
    base: Tensor | None
    residual: tuple[Tensor, Tensor] | None
    scale: float
    grad: Tensor  # [L, *shape]


def make_problem(
    shape: tuple[int, ...],
    layers: int,
    atoms: int,
    *,
    exact: bool,
    per_row: bool = False,
    base: bool = False,
    rank: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """If `exact`: small integers and powers of two, whose sums are exact in float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        if exact:
            return torch.randint(-4, 5, size, generator=generator).double()
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    columns = torch.Size(shape[1:]).numel()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    coef = draw(layers, atoms, shape[0]) if per_row else draw(layers, atoms)
    return Problem(
        atoms=draw(atoms, *shape).to(dtype),
        coef=coef.to(wide),
        base=draw(layers, *shape).to(dtype) if base else None,
        residual=(
            (draw(layers, shape[0], rank).to(dtype), draw(layers, rank, columns).to(dtype))
            if rank
            else None
        ),
        scale=0.5 if exact else 0.3,
        grad=draw(layers, *shape).to(dtype),
    )
