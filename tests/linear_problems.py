"""Linear layers over shared atoms for the kernels in the simulator, with their float64 results."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from rebuild_problems import as_float, as_type, poison
from sim_problems import Array, probe, without_signed_zero
from wlib.reference import atoms as reference


@dataclasses.dataclass
class LinearCase:
    """One call; what is exact in float32 must come out bit for bit."""

    x: Array  # [M, K]
    atoms: Array  # [S, N, K]
    coef: Array  # [S] or [M, S]
    bias: Array | None = None
    base: Array | None = None
    ctas: int = 2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    out: Array | None = None

    def reference(self) -> reference.Reference:
        operands = (self.x, self.atoms, self.coef, self.bias, self.base)
        return reference.linear(
            *(t if t is None else torch.from_numpy(as_float(t)) for t in operands)  # type: ignore[arg-type]
        )

    def simulate(self) -> list[Any]:
        """Findings; fills `out`."""
        dtype = self.x.dtype
        self.out = np.full((len(self.x), self.atoms.shape[1]), poison(dtype.type), dtype)
        report = probe.atoms_linear(
            self.x, self.atoms, self.coef, self.bias, self.base, self.out,
            ctas=self.ctas, options=probe.Options(**self.options),
        )  # fmt: skip
        return list(report.findings)

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        findings = self.simulate()
        if findings or self.out is None:
            return findings, False
        expected = as_type(self.reference().value.numpy(), self.out.dtype.type)
        return [], np.array_equal(*map(without_signed_zero, (self.out, expected)))


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
    **arguments: Any,
) -> LinearCase:
    """If `exact`: integers so small that every sum is exact in float32 and in the result's type."""

    def draw(*shape: int, kind: Any = dtype) -> Array:
        values = rng.integers(-1, 2, shape) if exact else rng.standard_normal(shape)
        return as_type(values, kind)

    case = LinearCase(draw(m, k), draw(s, n, k), draw(*((m, s) if own else (s,)), kind=np.float32))
    if exact:  # most coefficients are zero, or sums would leave the integers of bfloat16
        case.coef *= rng.random(case.coef.shape) < min(1, 4 / s)
    if extras:
        case.bias, case.base = draw(n), draw(n, k)
    return dataclasses.replace(case, **arguments)
