"""Number formats on NumPy arrays: uint8 holds the bits of E4M3, uint16 those of BF16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _e4m3_values() -> npt.NDArray[np.float64]:
    bits = np.arange(256)
    exponent, fraction = bits >> 3 & 15, bits & 7
    normal, subnormal = (8.0 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9
    values = np.where(exponent > 0, normal, subnormal) * np.where(bits & 128, -1, 1)
    return np.where(bits & 127 == 127, np.nan, values)


E4M3 = _e4m3_values()  # [256] value of every code
_FINITE = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
_ORDERED = _FINITE[np.argsort(E4M3[_FINITE], kind="stable")]


def to_e4m3(values: Array) -> npt.NDArray[np.uint8]:
    """Codes of the nearest finite E4M3 values; the choice between two equally near is arbitrary."""
    grid = E4M3[_ORDERED]
    return _ORDERED[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)]


def to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Bits of the values rounded to nearest even in BF16; NaN becomes 0x7fff."""
    f = np.asarray(values, np.float32)
    u = f.view(np.uint32)
    return np.where(np.isnan(f), 0x7FFF, (u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> npt.NDArray[np.float64]:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def nearest_e4m3(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Codes of the nearest E4M3 values, ties to even; beyond the largest finite one saturates."""
    grid = E4M3[:0x7F]
    magnitude = np.minimum(np.abs(values.astype(np.float64)), grid[-1])
    high = np.minimum(np.searchsorted(grid, magnitude), len(grid) - 1)
    low = np.maximum(high - 1, 0)
    up, down = grid[high] - magnitude, magnitude - grid[low]
    code = np.where((up < down) | ((up == down) & (high % 2 == 0)), high, low)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def values_of(array: Array) -> npt.NDArray[np.float64]:
    """What an array of any of the types stands for."""
    if array.dtype == np.uint8:
        return E4M3[array]
    return from_bf16(array) if array.dtype == np.uint16 else array.astype(np.float64)


def rounded(values: Array, out: type[np.generic]) -> Array:
    """The values in float32, rounded once to the type `out`."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
        if out is np.uint8:
            return nearest_e4m3(values)
        return to_bf16(values) if out is np.uint16 else values.astype(out)
