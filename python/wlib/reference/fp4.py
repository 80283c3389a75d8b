"""Float64 reference of the FP4 quantisers, sharing no code with the ops it judges.

Everything is written from the definitions: grids, nearest neighbours, logarithms. Where the ops
round to float32 by definition (docs/numerics.md), so does the reference, once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GRID = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


class Quantised(NamedTuple):
    """Codes 0..15 and scales of a matrix.

    codes: int64 [R, C]; scale: float64 [R, blocks], NaN where a block holds NaN or Inf.
    """

    codes: Tensor
    scale: Tensor

    def values(self) -> Tensor:
        """code * scale, float64 [R, C]."""
        sign = torch.where(self.codes >= 8, -1.0, 1.0).double()
        magnitudes = sign * GRID[self.codes % 8]
        blocks = magnitudes.unflatten(1, (self.scale.shape[1], -1))
        values: Tensor = blocks * self.scale[..., None]
        return values.flatten(1)


def hadamard_matrix(size: int) -> Tensor:
    """Orthonormal, entry (i, j) is (-1)^(number of common bits of i and j) / sqrt(size)."""
    i = torch.arange(size)
    common = i[:, None] & i
    parity = sum((common >> bit & 1 for bit in range(7)), torch.zeros_like(common)) % 2
    matrix: Tensor = (1.0 - 2.0 * parity.double()) / size**0.5
    return matrix


def rotate(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """Blocks of `size` along the last dimension times signs, then times the matrix; float64."""
    blocks = x.double().unflatten(-1, (-1, size))
    if signs is not None:
        blocks = blocks * signs.double()
    turned: Tensor = blocks @ hadamard_matrix(size)
    return turned.flatten(-2)


def nearest_code(t: Tensor) -> Tensor:
    """E2M1 code of the nearest grid value, ties to even codes, saturated at 6; float64 in."""
    distance = (t.abs().clamp(max=6.0)[..., None] - GRID).abs()
    best = distance.amin(dim=-1, keepdim=True)
    tied = distance == best
    even = tied & (torch.arange(8) % 2 == 0)
    choice = torch.where(even.any(dim=-1, keepdim=True), even, tied)
    return choice.long().argmax(dim=-1) + 8 * torch.signbit(t)


def mx_exponent(blocks: Tensor, rule: str) -> Tensor:
    """Exponent of the scale of float64 blocks [..., 32]; -127..125."""
    amax = blocks.abs().amax(dim=-1)
    if rule in ("quest", "quest_floor"):
        sigma = blocks.std(dim=-1, correction=0)
        exact = torch.log2(sigma * (2.92247856 / 6))
        exponent = torch.floor(exact + 0.5) if rule == "quest" else torch.floor(exact)
    else:
        mantissa, power = torch.frexp(amax)  # mantissa in [0.5, 1)
        rounds_up = (mantissa >= 0.875) if rule == "even" else torch.zeros_like(mantissa)
        exponent = power - 1 + rounds_up.to(power.dtype) - 2
    exponent = torch.where(amax == 0, -127.0, exponent.double())
    return exponent.clamp(-127, 125)


def quantize_mx(rotated: Tensor, rule: str, window: int = 0) -> Quantised:
    """MXFP4 of float32 or float64 values [R, C], already rotated."""
    blocks = rotated.double().unflatten(1, (-1, 32))
    finite = blocks.isfinite().all(dim=-1)
    exponent = mx_exponent(torch.where(finite[..., None], blocks, 0.0), rule)
    if window:
        top = torch.where(finite, exponent, -127.0).amax(dim=1, keepdim=True)
        exponent = torch.maximum(exponent, (top - (window - 1)).clamp(min=-127))
    scaled = blocks / torch.exp2(exponent)[..., None]
    if rule == "three_quarters":
        scaled = (scaled * 0.75).float().double()
    codes = torch.where(finite[..., None], nearest_code(scaled), 0)
    scale = torch.where(finite, torch.exp2(exponent), torch.nan)
    return Quantised(codes.flatten(1), scale)


def e4m3_grid() -> Tensor:
    """The non-negative finite E4M3 values, ascending; a code is its index."""
    code = torch.arange(127)
    exponent, fraction = (code // 8).double(), (code % 8).double()
    normal = (1 + fraction / 8) * torch.exp2(exponent - 7)
    return torch.where(exponent == 0, fraction * 2.0**-9, normal)


def nearest_e4m3(values: Tensor) -> Tensor:
    """Nearest non-negative E4M3 value, ties to even codes, saturated at 448."""
    grid = e4m3_grid()
    high = torch.searchsorted(grid, values.contiguous()).clamp(max=126)
    low = (high - 1).clamp(min=0)
    up, down = grid[high] - values, values - grid[low]
    take_high = (up < down) | ((up == down) & (high % 2 == 0))
    return torch.where(take_high, grid[high], grid[low])


def nv_global_scale(rotated: Tensor, rule: str) -> Tensor:
    """Largest magnitude in blocks without NaN and Inf / (largest scale * 6), a float32."""
    blocks = rotated.float().unflatten(1, (-1, 16))
    finite = blocks.isfinite().all(dim=-1, keepdim=True)
    amax = torch.where(finite, blocks, 0.0).abs().max()
    return amax / ((256.0 if rule == "four_over_six" else 448.0) * 6)


def quantize_nv(rotated: Tensor, rule: str, global_scale: Tensor) -> Quantised:
    """NVFP4 of float32 values [R, C], already rotated; scales without the global one.

    The float32 roundings of the definition: 1 / global, amax times it, / 6 or / 4, and the product
    of a value with (1 / global) / scale.
    """
    blocks = rotated.float().unflatten(1, (-1, 16))
    finite = blocks.isfinite().all(dim=-1)
    blocks = torch.where(finite[..., None], blocks, 0.0)
    to_global = torch.where(global_scale > 0, 1 / global_scale, 0.0).float()
    amax = blocks.abs().amax(dim=-1) * to_global

    def codes_and_error(divisor: float) -> tuple[Tensor, Tensor, Tensor]:
        scale = nearest_e4m3((amax / divisor).double())
        factor = torch.where(scale > 0, to_global / scale.float(), 0.0)
        codes = nearest_code((blocks * factor[..., None]).double())
        represented = Quantised(codes.flatten(1), scale).values().unflatten(1, (-1, 16))
        error = (represented - blocks.double() / global_scale.double()).square().sum(dim=-1)
        return codes, scale, error

    codes, scale, error = codes_and_error(6.0)
    if rule == "four_over_six":
        other_codes, other_scale, other_error = codes_and_error(4.0)
        better = other_error < error
        codes = torch.where(better[..., None], other_codes, codes)
        scale = torch.where(better, other_scale, scale)
    codes = torch.where(finite[..., None], codes, 0)
    return Quantised(codes.flatten(1), torch.where(finite, scale, torch.nan))
