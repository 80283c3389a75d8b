"""Layers for the kernel of rebuilt weights in the simulator, with their float64 reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from sim_problems import Array, from_bf16, probe, to_bf16, without_signed_zero
from wlib.reference import rebuild as reference

OUT_TYPES = (np.float32, np.uint16, np.float16)  # uint16 holds the bits of bfloat16


def as_type(values: Array, dtype: Any) -> Array:
    """Values in a storage type."""
    f = values.astype(np.float32)
    return to_bf16(f) if dtype is np.uint16 else f.astype(dtype)


def as_float(stored: Array) -> Array:
    return from_bf16(stored) if stored.dtype == np.uint16 else stored.astype(np.float64)


@dataclasses.dataclass
class RebuildCase:
    """One layer; `out` is what the kernel writes."""

    w0: Array | None
    operands: list[Array]
    form: int
    scale: float
    out: Array
    strided: bool = False  # the first two operands, when the kernel runs: a pickled array is not

    def given(self) -> list[Array]:
        """Operands as the kernel gets them."""
        if not self.strided:
            return self.operands
        a, b, *rest = self.operands
        every_other_column = np.repeat(a, 2, axis=1)[:, ::2]
        rows_of_odd_length = np.pad(b, ((0, 0), (0, 1)))[:, :-1]
        return [every_other_column, rows_of_odd_length, *rest]

    def expected(self) -> Array:
        """The float64 result, rounded once."""
        by_form: Any = (
            reference.low_rank,
            reference.hadamard,
            reference.kron,
            reference.block_affine,
        )
        w0 = None if self.w0 is None else torch.from_numpy(as_float(self.w0))
        operands = [torch.from_numpy(np.ascontiguousarray(as_float(a))) for a in self.operands]
        exact = by_form[self.form](w0, *operands, self.scale).value.numpy()
        return as_type(exact.reshape(self.out.shape), self.out.dtype.type)

    def is_exact(self) -> bool:
        """Whether `out` holds the reference's result, -0 and 0 being the same."""
        return np.array_equal(without_signed_zero(self.out), without_signed_zero(self.expected()))

    def run(self) -> tuple[list[Any], bool]:
        """Findings of two CTAs, and whether the result is the reference's."""
        self.out[:] = poison(self.out.dtype.type)
        findings = simulated([self], capacity=8, ctas=2)
        return findings, self.is_exact()


def poison(dtype: Any) -> Any:
    return 0x7FC1 if dtype is np.uint16 else np.nan


def shapes(form: int, n: int, k: int, r: int) -> list[tuple[int, ...]]:
    """Of the operands of a layer [n, k]; for kron and block_affine r divides n and k."""
    if form == 0:
        return [(n, r), (r, k)]
    if form == 1:
        return [(n, r), (r, k), (n, r // 2 + 1), (r // 2 + 1, k)]
    return [(n // r, k // r), (r, r)] if form == 2 else [(n // r, r, r)]


def draw_layer(
    rng: np.random.Generator,
    form: int,
    out: Any,
    *,
    small: bool = False,
    size: tuple[int, int, int] | None = None,
) -> RebuildCase:
    """A layer of small integers, whose sums are exact; operands are views now and then."""
    r = int(rng.integers(1, 24))
    n, k = (int(rng.integers(0 if form < 2 else 1, 20 if small else 150)) for _ in range(2))
    if form >= 2:
        n, k = max(n // r, 1) * r, max(k // r, 1) * r
    n, k, r = size or (n, k, r)
    dtype = OUT_TYPES[rng.integers(3)]

    def integers(*shape: int) -> Array:
        if len(shape) == 2 and rng.integers(2):
            return as_type(rng.integers(-1, 2, shape[::-1]), dtype).T
        return as_type(rng.integers(-1, 2, shape), dtype)

    base = OUT_TYPES[rng.integers(3)]
    w0 = as_type(rng.integers(-1, 2, (n, k)), base) if form == 3 or rng.integers(4) else None
    operands = [integers(*shape) for shape in shapes(form, n, k, r)]
    return RebuildCase(w0, operands, form, 0.5, np.full((n, k), poison(out), out))


def stochastic_case(rng: np.random.Generator, form: int, n: int) -> RebuildCase:
    """A layer [n, 36] with blocks of 4 and a base of twelve bits below its integers."""
    operands = [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes(form, n, 36, 4)]
    w0 = (rng.integers(-(2**13), 2**13, (n, 36)) * 2.0**-10).astype(np.float32)
    return RebuildCase(w0, operands, form, 0.5, np.full((n, 36), 0x7FC1, np.uint16))


def split_case(
    rng: np.random.Generator,
    form: int,
    size: tuple[int, int, int],
    out: Any,
    *,
    strided: bool = False,
) -> RebuildCase:
    """A layer that is exact only if both parts of every split operand are multiplied.

    At each rank one of the first two operands has ten bits and the other is small. The base takes
    away what 16 bits hold of the delta, so that the result shows the rest of it. Operands are
    float32; if strided, float16.
    """
    n, k, r = size
    operands = [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes(form, n, k, r)]
    a, b = operands[:2]
    a[:, ::2] = rng.integers(-1023, 1024, a[:, ::2].shape)
    b[1::2] = rng.integers(-1023, 1024, b[1::2].shape)
    if strided:
        operands = [x.astype(np.float16) for x in operands]
    case = RebuildCase(None, operands, form, 0.5, np.full((n, k), poison(out), out), strided)
    case.w0 = as_type(-as_float(case.expected()), out)
    return case


def simulated(
    layers: list[RebuildCase],
    *,
    capacity: int,
    ctas: int,
    rounding_seed: int | None = None,
    **options: Any,
) -> list[Any]:
    """Findings of a run of the kernel, which fills the layers' outs."""
    given = [(x.w0, x.out, x.given(), x.form, x.scale) for x in layers]
    report = probe.rebuild(
        given, seed=rounding_seed, capacity=capacity, ctas=ctas, options=probe.Options(**options)
    )
    findings: list[Any] = report.findings
    return findings


def rebuild(w0: Array | None, operands: list[Array], form: int, scale: float) -> Array:
    """One float32 layer by the kernel."""
    shape = (operands[0].shape[0], operands[1].shape[1])
    case = RebuildCase(w0, operands, form, scale, np.full(shape, np.nan, np.float32))
    assert simulated([case], capacity=8, ctas=1) == []
    return case.out
