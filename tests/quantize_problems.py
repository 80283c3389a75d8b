"""Problems for the quantiser's kernels in the simulator, with their references."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import wlib  # noqa: F401  registers the ops
from sim_numbers import E4M3, Array, nearest_e4m3
from sim_problems import probe


def quantize_reference(x: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    """Codes [rows, k] and scales [rows] of finite rows: scale = max |x| / 448 in float32."""
    scale = np.abs(x).max(axis=1) / np.float32(448)
    with np.errstate(invalid="ignore"):
        quotient = np.where(scale[:, None] == 0, np.float32(0), x / scale[:, None])
    return nearest_e4m3(quotient), scale


def quantize(x: Array, **options: Any) -> tuple[Array, Array, list[Any]]:
    """Codes, scales and findings of the quantiser kernel."""
    codes, scale = np.full(x.shape, 0x55, np.uint8), np.full(len(x), np.nan, np.float32)
    report = probe.int4fp8_quantize(x, codes, scale, options=probe.Options(**options))
    return codes, scale, report.findings


def group_sums_reference(codes: npt.NDArray[np.uint8], group_log2: int) -> Array:
    """Sums [groups, rows rounded up to a multiple of 4] of codes [rows, k], rounded once."""
    values = np.pad(E4M3[codes], ((0, -len(codes) % 4), (0, 0)))
    return np.add.reduceat(values, range(0, codes.shape[1], 1 << group_log2), axis=1).T.astype("f4")


def group_sums(
    codes: npt.NDArray[np.uint8], group_log2: int, **options: Any
) -> tuple[Array, list[Any]]:
    """Sums and findings of the kernel for group sums."""
    sums = np.full((-(-codes.shape[1] >> group_log2), -(-len(codes) // 4) * 4), np.nan, "f4")
    report = probe.int4fp8_group_sums(
        codes, sums, group_log2=group_log2, options=probe.Options(**options)
    )
    return sums, report.findings


@dataclasses.dataclass
class QuantizeCase:
    """Rows [n, k] of finite float32 and the options of their run."""

    x: npt.NDArray[np.float32]
    options: dict[str, Any]

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        codes, scale, findings = quantize(self.x, **self.options)
        expected = quantize_reference(self.x)
        return findings, all(map(np.array_equal, (codes, scale), expected))


@dataclasses.dataclass
class GroupSumsCase:
    """Finite codes [rows, k] and the options of their run."""

    codes: npt.NDArray[np.uint8]
    group_log2: int
    options: dict[str, Any]

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        sums, findings = group_sums(self.codes, self.group_log2, **self.options)
        return findings, np.array_equal(sums, group_sums_reference(self.codes, self.group_log2))


def as_torch(array: Array) -> torch.Tensor:
    """The same memory; uint16 holds the bits of bfloat16."""
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if (array.dtype == np.uint16)
        else torch.from_numpy(array)
    )


def as_numpy(tensor: torch.Tensor) -> Array:
    """The inverse of as_torch, and the bytes of float8."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor).numpy()


@dataclasses.dataclass
class FusedCase:
    """One of the quantisers with all that may be asked of it; the CPU's op is its definition."""

    x: Array  # [rows, k], or [rows, 2 k] if interleaved is not None
    options: dict[str, Any]
    weight: Array | None = None
    residual: Array | None = None  # may have more columns, so that its rows lie apart
    interleaved: bool | None = None
    sums_group: int | None = None
    eps: float = 1e-5

    def expected(self) -> list[Array]:
        x, kwargs = as_torch(self.x), {"sums_group": self.sums_group}
        ops = torch.ops.wlib
        if self.weight is not None:
            residual = None if self.residual is None else as_torch(self.residual)[:, : x.shape[1]]
            weight = as_torch(self.weight)
            out = ops.rms_norm_fp8_quantize(x, weight, eps=self.eps, residual=residual, **kwargs)
        elif self.interleaved is not None:
            out = ops.silu_mul_fp8_quantize(x, interleaved=self.interleaved, **kwargs)
        else:
            out = ops.fp8_quantize(x, **kwargs)
        return [as_numpy(tensor) for tensor in out]

    def simulate(self, shapes: list[Array]) -> tuple[list[Array], list[Any]]:
        """Outputs like `shapes`, and the findings."""
        out = [np.frombuffer(b"\x55" * a.nbytes, a.dtype).reshape(a.shape).copy() for a in shapes]
        arguments: dict[str, Any] = {}
        if self.sums_group is not None:
            arguments = {"sums": out[2], "group_log2": min(self.sums_group, 128).bit_length() - 1}
        if self.residual is not None:
            residual = self.residual[:, : self.x.shape[1]]
            arguments |= {"residual": residual, "new_residual": out[-1]}
        report = probe.int4fp8_quantize(
            self.x,
            out[0],
            out[1],
            weight=self.weight,
            eps=self.eps,
            interleaved=self.interleaved,
            options=probe.Options(**self.options),
            **arguments,
        )
        return out, report.findings

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the results are the definition's."""
        expected = self.expected()
        got, findings = self.simulate(expected)
        return findings, all(map(same_values, got, expected))


def same_values(a: Array, b: Array) -> bool:
    """Bit for bit, but NaN for NaN; uint8 holds E4M3 codes."""
    if a.dtype == np.uint8:
        a, b = (np.where(codes & 127 == 127, np.uint8(127), codes) for codes in (a, b))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
