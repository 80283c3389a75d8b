"""Float64 references of rebuilt weights, by the definition, sharing no code with the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

F32_EPS = 2.0**-24  # largest relative error of one float32 rounding


class Reference(NamedTuple):
    """Exact result and the sum of the magnitudes of all that is added up in it, float64."""

    value: Tensor
    magnitude: Tensor

    def bound(self, terms: int, out_dtype: torch.dtype, products: int = 0) -> Tensor:
        """Largest error of float32 sums of `terms` terms in any order and one final rounding.

        A product of two sums has terms that pass through the roundings of both, three products and
        the addition of the base: hence the eight. If `products` of them run on tensor cores, each
        leaves out less than 3 * 2^-16 of every term, and sums are cut instead of rounded, three
        times as many and up to four for one: see docs/design/rebuild.md.
        """
        relative = (terms + 8) * F32_EPS
        if products:
            relative = products * 3 * 2.0**-16 + (4 * terms + 16) * 2 * F32_EPS
        summed = relative * self.magnitude
        info = torch.finfo(out_dtype)
        rounding = (self.value.abs() + summed) * (info.eps / 2)
        return summed + rounding.clamp_min(info.smallest_normal * info.eps / 2)


def _both(w0: Tensor | None, scale: float, value: Tensor, magnitude: Tensor) -> Reference:
    value, magnitude = scale * value, abs(scale) * magnitude
    if w0 is None:
        return Reference(value, magnitude)
    base = w0.double().view(value.shape)
    return Reference(base + value, base.abs() + magnitude)


def low_rank(w0: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Reference:
    """w0 + scale * a b."""
    a, b = a.double(), b.double()
    return _both(w0, scale, a @ b, a.abs() @ b.abs())


def hadamard(
    w0: Tensor | None, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, scale: float
) -> Reference:
    """w0 + scale * (a1 b1) o (a2 b2)."""
    first, second = low_rank(None, a1, b1, 1.0), low_rank(None, a2, b2, 1.0)
    return _both(w0, scale, first.value * second.value, first.magnitude * second.magnitude)


def kron(w0: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Reference:
    """w0 + scale * kron(a, b)."""
    value = torch.kron(a.double().contiguous(), b.double().contiguous())
    return _both(w0, scale, value, value.abs())


def block_affine(w0: Tensor, blocks: Tensor, scale: float) -> Reference:
    """w0_ij + scale * (w0_ij B_i + B_i)."""

    def added(w: Tensor, b: Tensor) -> Tensor:
        rows, r, _ = b.shape
        parts = [
            torch.cat([piece @ b[i] + b[i] for piece in w[i * r : (i + 1) * r].split(r, dim=1)], 1)
            for i in range(rows)
        ]
        return torch.cat(parts)

    w, b = w0.double(), blocks.double()
    return _both(w0, scale, added(w, b), added(w.abs(), b.abs()))


def tucker(core: Tensor, factors: Sequence[Tensor]) -> Reference:
    """The tensor of a core and its factors."""

    def build(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
        for dim, factor in enumerate(factors):
            core = torch.tensordot(factor, core, dims=([1], [dim])).movedim(0, dim)
        return core

    core, factors = core.double(), [factor.double() for factor in factors]
    return Reference(build(core, factors), build(core.abs(), [f.abs() for f in factors]))
