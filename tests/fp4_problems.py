"""Problems for the FP4 quantiser in the simulator; the CPU's ops are the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

import wlib  # noqa: F401  registers the ops
from quantize_problems import as_torch
from sim_numbers import Array, to_bf16
from sim_problems import probe

RULES = ("even", "floor", "three_quarters", "quest", "quest_floor", "amax", "four_over_six")
ROUNDINGS = ("nearest", "stochastic", "ms_eden")
WINDOWS = {"none": 0, "e4m3": 15, "e5m2": 29}  # of a carrier, by itself
CARRIERS = tuple(WINDOWS)


def as_bytes(tensor: torch.Tensor) -> Array:
    """The bytes of FP8 and of codes; float32 as it is."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.uint8)).numpy()


def draw(rng: np.random.Generator, dtype: Any, rows: int, columns: int, spread: int = 0) -> Array:
    """Normal numbers, blocks of 16 x 16 of which differ by up to 2^spread."""
    shape = (-(-rows // 16), -(-columns // 16))
    exponents = np.kron(rng.integers(-spread, 1, shape), np.ones((16, 16)))[:rows, :columns]
    values = (rng.standard_normal((rows, columns)) * 2.0**exponents).astype(np.float32)
    return to_bf16(values) if dtype is np.uint16 else values.astype(dtype)


def several_strips(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """BF16 in at least five tiles along a row, two of which have a block far below the others."""
    x = draw(rng, np.uint16, rows, columns, spread=2)
    values = as_torch(x)
    values[5, 160:192] *= 2.0**-30
    values[40, 544:576] *= 2.0**-30
    values[7, 300] = torch.nan
    return x


@dataclasses.dataclass
class QuantizeCase:
    """What is quantised, with the arguments of the op and the options of the simulator's run."""

    source: list[Any]  # x, or codes, scales and global scale of a packed matrix
    arguments: dict[str, Any]
    options: dict[str, Any]
    axis: str = "rows"

    def expected(self) -> list[Array]:
        """All that the op returns."""
        keywords = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self.arguments.items()
        }
        if len(self.source) == 1:
            x = as_torch(self.source[0])
            out = torch.ops.wlib.fp4_quantize(x, axis=self.axis, **keywords)
        else:
            codes, scales, scale = (None if a is None else torch.from_numpy(a) for a in self.source)
            assert codes is not None
            if scale is not None:
                scales = scales.view(torch.float8_e4m3fn)
            out = torch.ops.wlib.fp4_requantize_t(codes, scales, scale, **keywords)
        return [as_bytes(tensor) for tensor in out]

    def simulate(self, like: list[Array]) -> tuple[list[Array], list[Any]]:
        """Outputs like those of the op, and the findings."""
        out = [np.frombuffer(b"\x55" * a.nbytes, a.dtype).reshape(a.shape).copy() for a in like]
        transposed = {"rows": [False], "columns": [True], "both": [False, True]}[self.axis]
        sides = [[side, *out[6 * i : 6 * i + 6]] for i, side in enumerate(transposed)]
        given = {"hadamard": 0, "swizzle": False, "square": False, "offset": 0, **self.arguments}
        optional = {name: given.get(name) for name in ("signs", "seed", "global_scale")}
        carrier = given.get("carrier", "none")
        mx = given.get("format", "mxfp4") == "mxfp4"
        numbers = {
            "rule": RULES.index(given.get("scale_rule", "even" if mx else "amax")),
            "rounding": ROUNDINGS.index(given.get("rounding", "nearest")),
            "carrier": CARRIERS.index(carrier),
            "window": given.get("window", 0) or WINDOWS[carrier],
        }
        arguments = given | optional | numbers
        options = probe.Options(**self.options)
        report = probe.fp4_quantize(self.source, sides, arguments, options)
        return out, report.findings

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether every byte is the reference's."""
        expected = self.expected()
        got, findings = self.simulate(expected)
        return findings, all(
            np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
            for a, b in zip(got, expected, strict=True)
        )


@dataclasses.dataclass
class HadamardCase:
    """A matrix that is rotated by itself."""

    x: Array
    size: int
    options: dict[str, Any]
    signs: Array | None = None
    inverse: bool = False

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether every bit is the reference's; NaN for NaN."""
        y = np.full(self.x.shape, 77, self.x.dtype)
        options = probe.Options(**self.options)
        report = probe.fp4_hadamard(self.x, y, self.size, self.signs, self.inverse, options)
        signs = None if self.signs is None else torch.from_numpy(self.signs)
        expected = torch.ops.wlib.hadamard(as_torch(self.x), self.size, signs, inverse=self.inverse)
        return report.findings, torch.equal(
            *(t.float().nan_to_num(12345.0) for t in (as_torch(y), expected))
        )


def random_signs(rng: np.random.Generator, size: int) -> Array:
    return rng.choice(np.array([-1, 1], np.int8), size)


def packed(
    rng: np.random.Generator, rows: int, columns: int, format: str = "mxfp4", scale: float = 1
) -> list[Any]:
    """A packed matrix [rows, columns] of a format."""
    x = scale * torch.from_numpy(draw(rng, np.float32, rows, columns, spread=6))
    out = torch.ops.wlib.fp4_quantize(
        x, format=format, scale_rule="even" if format == "mxfp4" else "amax"
    )
    codes, scales, global_scale = (as_bytes(tensor) for tensor in out[:3])
    return [codes, scales, global_scale if format == "nvfp4" else None]
