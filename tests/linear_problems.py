"""Linear layers over shared atoms for the kernels in the simulator, with their float64 results."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from rebuild_problems import as_type, poison
from sim_numbers import to_e4m3, values_of
from sim_problems import Array, probe, without_signed_zero
from wlib import Int4Weight, PackedInt4Experts, layout, pack_experts
from wlib.reference import atoms as reference


@dataclasses.dataclass
class LinearCase:
    """One call; what is exact in float32 must come out bit for bit."""

    x: Array  # [M, K]
    atoms: Array | PackedInt4Experts  # [S, N, K]; uint8 holds the codes of E4M3
    coef: Array  # [S] or [M, S]
    bias: Array | None = None
    base: Array | None = None
    ctas: int = 2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    out: Array | None = None

    def reference(self) -> reference.Reference:
        x, coef, bias, base = (
            None if t is None else torch.from_numpy(values_of(t))
            for t in (self.x, self.coef, self.bias, self.base)
        )
        assert x is not None
        assert coef is not None
        if isinstance(self.atoms, PackedInt4Experts):
            each = [self.atoms[i].unpack().dequantize() for i in range(self.atoms.experts)]
            return reference.linear(x, torch.stack(each), coef, bias, base)
        return reference.linear(x, torch.from_numpy(values_of(self.atoms)), coef, bias, base)

    def simulate(self) -> list[Any]:
        """Findings; fills `out`."""
        dtype = self.x.dtype
        atoms, groups = self.atoms, 0
        if isinstance(atoms, PackedInt4Experts):
            rows, groups = atoms.n, layout.tile_groups(atoms.k, atoms.group_size)
            atoms = atoms.data.numpy()
        else:
            rows = atoms.shape[1]
        self.out = np.full((len(self.x), rows), poison(dtype.type), dtype)
        report = probe.atoms_linear(
            self.x, atoms, self.coef, self.bias, self.base, self.out, ctas=self.ctas,
            options=probe.Options(**self.options), int4_groups=groups,
        )  # fmt: skip
        return list(report.findings)

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        findings = self.simulate()
        if findings or self.out is None:
            return findings, False
        expected = as_type(self.reference().value.numpy(), self.out.dtype.type)
        return [], np.array_equal(*map(without_signed_zero, (self.out, expected)))


def draw_int4(
    rng: np.random.Generator, s: int, n: int, k: int, group_size: int, *, exact: bool = True
) -> PackedInt4Experts:
    """All codes; if `exact`, scales that are powers of two."""

    def scales(*shape: int) -> torch.Tensor:
        draw = 2.0 ** rng.integers(-1, 3, shape) if exact else rng.random(shape)
        return torch.from_numpy(draw).float()

    def weight() -> Int4Weight:
        codes = torch.from_numpy(rng.integers(0, 256, (n, k // 2), np.uint8))
        return Int4Weight(codes, scales(n, k // group_size).bfloat16(), None, scales(n))

    return pack_experts([weight() for _ in range(s)])


def make_case(
    rng: np.random.Generator,
    dtype: Any,
    m: int,
    s: int,
    n: int,
    k: int,
    *,
    own: bool = True,
    extras: bool = True,
    exact: bool = True,
    fp8: bool = False,
    group_size: int = 0,
    **arguments: Any,
) -> LinearCase:
    """If `exact`: integers so small that every sum is exact in float32 and in the result's type.

    With a group_size, atoms are INT4; their sums are exact in float32.
    """

    def draw(*shape: int, kind: Any = dtype) -> Array:
        values = rng.integers(-1, 2, shape) if exact else rng.standard_normal(shape)
        return as_type(values, kind)

    case = LinearCase(draw(m, k), draw(s, n, k), draw(*((m, s) if own else (s,)), kind=np.float32))
    if exact:  # most coefficients are zero, or sums would leave the integers of bfloat16
        case.coef *= rng.random(case.coef.shape) < min(1, 4 / s)
    if extras:
        case.bias, case.base = draw(n), draw(n, k)
    if fp8:
        case.atoms = to_e4m3(values_of(case.atoms))
    if group_size:
        case.atoms = draw_int4(rng, s, n, k, group_size, exact=exact)
    return dataclasses.replace(case, **arguments)
