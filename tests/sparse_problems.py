"""Sparse matrices in tiles for the kernels in the simulator, with their float64 results."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

import wlib
from rebuild_problems import as_float, as_type, poison
from sim_problems import Array, probe, without_signed_zero
from wlib.reference import sparse_lowrank as reference


def matrix_of(values: Array, support: wlib.SparseSupport) -> Array:
    """S as float64 [rows, columns]."""
    stored = torch.from_numpy(as_float(values))
    dense: Array = reference.sparse(stored, support.indices(), *support.shape).numpy()
    return dense


def draw_support(
    rng: np.random.Generator, rows: int, columns: int, density: float
) -> wlib.SparseSupport:
    """A random support with an empty tile, an empty row and a full row."""
    mask = rng.random((rows, columns)) < density
    mask[rows // 2] = True
    mask[rows // 3] = False
    mask[:128, 128:256] = False
    return wlib.SparseSupport.from_mask(torch.from_numpy(mask))


def padded(rows: Array, pad: int) -> Array:
    """The same rows, `pad` elements apart."""
    wide = np.zeros((rows.shape[0], rows.shape[1] + pad), rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


@dataclasses.dataclass
class SparseCase:
    """One product of each kind; what is exact in float32 must come out bit for bit.

    `kind` is "forward", "transposed" (of float32 both kernels), "sampled". `left` is x, but dy
    where the product is transposed; `right` is x of the sampled product.
    """

    kind: str
    support: wlib.SparseSupport
    values: Array
    left: Array
    right: Array | None = None
    base: Array | None = None
    bias: Array | None = None
    pad: int = 0  # elements between the rows of activations
    ctas: int = 2
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    out: Array | None = None

    @property
    def places(self) -> tuple[Array, Array]:
        return self.support.positions.numpy(), self.support.offsets.numpy()

    def expected(self) -> Array:
        """The float64 result, rounded once."""
        left = as_float(self.left)
        if self.kind == "sampled":
            assert self.right is not None
            full = torch.from_numpy(left.T @ as_float(self.right))
            return as_type(self.support.gather(full).numpy(), self.values.dtype.type)
        s = matrix_of(self.values, self.support)
        y = left @ (s if self.kind == "transposed" else s.T)
        for more in (self.bias, self.base):
            y = y if more is None else y + as_float(more)
        return as_type(y, self.left.dtype.type)

    def simulate(self) -> list[Any]:
        """Findings; fills `out`."""
        options = probe.Options(**self.options)
        launch = {"ctas": self.ctas, "options": options}
        positions, offsets = self.places
        left, right = (x if x is None else padded(x, self.pad) for x in (self.left, self.right))
        if self.kind == "sampled":
            self.out = np.full_like(self.values, poison(self.values.dtype.type))
            sampled = probe.sparse_sample(left, right, positions, offsets, self.out, **launch)
            return list(sampled.findings)
        values, transposed = self.values, self.kind == "transposed"
        if transposed and self.left.dtype == np.float32:
            ordered = np.full(len(values), np.nan, np.float32), np.full_like(positions, -1)
            report = probe.sparse_transpose(
                values, positions, offsets, *self.support.shape, *ordered, **launch
            )
            if report.findings:
                return list(report.findings)
            values, positions = ordered
        shape = len(self.left), self.support.shape[int(transposed)]
        self.out = np.full(shape, poison(self.left.dtype.type), self.left.dtype)
        report = probe.sparse_matmul(
            left, values, positions, offsets, self.out,
            base=self.base, bias=self.bias, transposed=transposed, **launch,
        )  # fmt: skip
        return list(report.findings)

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        findings = self.simulate()
        if findings or self.out is None:
            return findings, False
        return [], np.array_equal(*map(without_signed_zero, (self.out, self.expected())))


def exact_case(
    rng: np.random.Generator,
    kind: str,
    dtype: Any,
    *,
    rows: int = 300,
    columns: int = 270,
    tokens: int = 150,
    density: float = 0.03,
    extras: bool = True,
    **arguments: Any,
) -> SparseCase:
    """Integers so small that every sum is exact in float32 and in the result's type."""
    support = draw_support(rng, rows, columns, density)

    def integers(*shape: int, kind: Any = dtype) -> Array:
        return as_type(rng.integers(-1, 2, shape), kind)

    ins, outs = (rows, columns) if kind == "transposed" else (columns, rows)
    values = integers(support.count, kind=rng.choice([np.float32, np.uint16, np.float16]))
    case = SparseCase(kind, support, values, integers(tokens, ins), **arguments)
    if kind == "sampled":
        case.left, case.right = (integers(tokens, n) for n in (rows, columns))
    elif extras:
        case.base, case.bias = integers(tokens, outs), integers(outs)
    return case
