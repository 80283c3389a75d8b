"""Operands of fp4_matmul for its kernels in the simulator, with their values in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_numbers import E4M3, Array, rounded, values_of
from sim_problems import probe, without_signed_zero

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_HALVES = np.arange(256, dtype=np.uint16) << 8
E5M2 = _HALVES.view(np.float16).astype(np.float64)
E8M0 = np.where(np.arange(256) == 255, np.nan, 2.0 ** (np.arange(256.0) - 127))
MODES = {"fold8": 0, "bf16": 1, "exact32": 2}


@dataclasses.dataclass
class Operand:
    """Packed codes or a carrier, as the bindings take them."""

    arrays: dict[str, Any]

    def values(self) -> npt.NDArray[np.float64]:
        """[rows, k], without global or row scale."""
        a = self.arrays
        if "carrier" in a:
            return (E5M2 if a["e5m2"] else E4M3)[a["carrier"]]
        nibbles = np.stack((a["codes"] & 15, a["codes"] >> 4), axis=2)
        codes = E2M1[nibbles.reshape(len(nibbles), -1)]
        scales = E4M3[a["scales"]] if "global_scale" in a else E8M0[a["scales"]]
        return codes * np.repeat(scales, 16 if "global_scale" in a else 32, axis=1)

    def row_scale(self) -> Array:
        """[rows, 1]."""
        a = self.arrays
        rows = len(a["carrier" if "carrier" in a else "codes"])
        scale = a.get("row_scale", a.get("global_scale", np.ones((), np.float32)))
        return np.broadcast_to(scale, rows)[:, None].astype(np.float64)


def packed(codes: npt.NDArray[np.uint8], scales: Array, global_scale: float | None) -> Operand:
    """Of codes [rows, k], one per byte, and the bits of their scales."""
    arrays: dict[str, Any] = {
        "codes": np.ascontiguousarray(codes[:, 0::2] | codes[:, 1::2] << 4),
        "scales": scales.astype(np.uint8),
    }
    if global_scale is not None:
        arrays["global_scale"] = np.array(global_scale, np.float32)
    return Operand(arrays)


def draw_codes(rng: np.random.Generator, rows: int, k: int, exact: bool) -> Array:
    """Any codes; or, so that truncated sums are exact, whole numbers, most of them zeros."""
    codes = rng.integers(0, 16, (rows, k))
    whole = np.isin(codes & 7, (1, 3), invert=True) & (rng.random((rows, k)) < 0.4)
    return (codes * whole if exact else codes).astype(np.uint8)


def mxfp4(
    rng: np.random.Generator, rows: int, k: int, spread: int = 1, exact: bool = True
) -> Operand:
    """Scales from 2^-spread to 2^spread."""
    codes = draw_codes(rng, rows, k, exact)
    return packed(codes, 127 + rng.integers(-spread, spread + 1, (rows, k // 32)), None)


def nvfp4(rng: np.random.Generator, rows: int, k: int, exact: bool = True) -> Operand:
    """Scales of four significant bits between 1 and 4, or any; a global scale of three bits."""
    scales = (
        rng.integers(0x38, 0x48, (rows, k // 16))
        if exact
        else rng.integers(0, 0x7F, (rows, k // 16))
    )
    return packed(draw_codes(rng, rows, k, exact), scales, 0.625)


def carrier(rng: np.random.Generator, rows: int, k: int, e5m2: bool, exact: bool = True) -> Operand:
    """Small values, or any finite ones; row scales are powers of two."""
    table = E5M2 if e5m2 else E4M3
    if exact:
        values = rng.choice([0, 0, 0, 0, -3, -2, -1, -0.5, 0.5, 1, 2, 3], (rows, k))
        codes = np.searchsorted(table[:0x7C], np.abs(values)).astype(np.uint8)
        codes |= np.where(values < 0, 128, 0).astype(np.uint8)
    else:
        codes = (rng.integers(0, 0x78, (rows, k)) | rng.integers(0, 2, (rows, k)) << 7).astype("u1")
    scale = (2.0 ** rng.integers(-2, 3, rows)).astype(np.float32)
    return Operand({"carrier": codes, "e5m2": e5m2, "row_scale": scale})


@dataclasses.dataclass
class MatmulCase:
    """y = alpha a b^T, and how to run it; mutants run it in a process of their own."""

    a: Operand
    b: Operand
    mode: str = "fold8"
    alpha: float = 0.75
    out: type[np.generic] = np.float32
    instance: int = 1
    ctas: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def _scaled(self, sums: Array) -> npt.NDArray[np.float64]:
        return sums * self.a.row_scale() * self.b.row_scale().T * self.alpha

    def reference(self) -> npt.NDArray[np.float64]:
        """Exact up to float64."""
        return self._scaled(self.a.values() @ self.b.values().T)

    def magnitude(self) -> npt.NDArray[np.float64]:
        """Sum of the magnitudes of all that is added up."""
        return self._scaled(np.abs(self.a.values()) @ np.abs(self.b.values()).T)

    def launch(self) -> tuple[Array, Any]:
        """Outputs and report."""
        shape = (len(self.a.values()), len(self.b.values()))
        y = np.full(shape, 0x7FC1 if self.out is np.uint16 else np.nan, self.out)
        report = probe.fp4_matmul(
            self.a.arrays,
            self.b.arrays,
            y,
            mode=MODES[self.mode],
            alpha=self.alpha,
            instance=self.instance,
            ctas=self.ctas,
            options=probe.Options(**self.options),
        )
        return y, report

    def is_right(self, y: Array) -> bool:
        """Whether y is the reference, rounded once."""
        expected = without_signed_zero(rounded(self.reference(), self.out))
        return np.array_equal(
            values_of(without_signed_zero(y)), values_of(expected), equal_nan=True
        )

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        y, report = self.launch()
        return report.findings, self.is_right(y)
