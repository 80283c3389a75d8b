"""Scales of weight groups: which values a format can hold, and how a scale is chosen.

The kernels multiply BF16 group scales with a float32 scale per row. A `ScaleGrid` is the set of
scales both they and the format can hold without rounding, so that codes are always chosen against
the scale that is used:

    bf16   BF16
    fp16   with several groups per row the BF16 values that FP16 holds too, at most 65280; with
           one group per row FP16 itself, carried by the row scale
    fp32   BF16, or float32 itself with one group per row
    e4m3   E4M3 times an outer scale; E4M3 is exact in BF16, the outer scale is the row scale
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScaleRule = Literal["absmax/8", "absmax/7.5", "absmax/7", "mse"]
ScaleFormat = Literal["bf16", "fp16", "fp32", "e4m3"]
OuterScale = Literal["channel", "tensor", "none"]

_DIVISORS = {"absmax/8": 8.0, "absmax/7.5": 7.5, "absmax/7": 7.0}
# What the search tries, in shares of absmax/8: the three rules, then down to 0.594.
_SHARES = (8 / 7, 8 / 7.5, *(1 - step / 32 for step in range(14)))
_SMALLEST_NORMAL = {"bf16": 2.0**-126, "fp16": 2.0**-14, "fp32": 2.0**-126, "e4m3": 2.0**-6}
_E4M3_TOP = 56.0  # where the largest scale goes: the product with the code -8 is 448, E4M3's end
_LARGEST_FP16_BF16 = 65280.0


class ScaleUnderflowWarning(UserWarning):
    """Group scales are too small for their format."""


@dataclass(frozen=True, eq=False)
class ScaleGrid:
    """The scales a weight [N, K] can have.

    Attributes:
        format: number format of the group scales.
        outer: None or float32 [N, 1], what every group scale of a row is multiplied by.
        per_row: whether a row is one group, whose scale then is the float32 row scale.
    """

    format: ScaleFormat
    outer: Tensor | None
    per_row: bool

    @classmethod
    def fit(
        cls, absmax: Tensor, format: ScaleFormat = "bf16", outer: OuterScale = "channel"
    ) -> ScaleGrid:
        """The grid for groups of these absolute maxima, float32 [N, K/G].

        The outer scale, for E4M3 alone, keeps scales out of its subnormals: a power of two for
        the tensor (FireQ, arXiv 2505.20839), the smallest that lifts the least group to 2^-6
        unless the largest would pass 56; or, closer, a scale per row that takes its largest to 56.

        Warns:
            ScaleUnderflowWarning: scales lie below the smallest normal value of the format.
        """
        factor = None
        if format == "e4m3" and outer != "none":
            rows = _channel_outer(absmax) if outer == "channel" else _tensor_outer(absmax)
            factor = rows[:, None]
        grid = cls(format, factor, per_row=absmax.shape[1] == 1 and format in ("fp16", "fp32"))
        scale = absmax / 8 if factor is None else absmax / 8 / factor
        low = int(((absmax > 0) & (scale < _SMALLEST_NORMAL[format])).sum())
        if low:
            exponent = int(math.log2(_SMALLEST_NORMAL[format]))
            warnings.warn(
                f"{low} of {absmax.numel()} group scales fall below 2^{exponent}, the smallest "
                f"normal {format} value: they lose bits or become 0",
                ScaleUnderflowWarning,
                stacklevel=3,
            )
        return grid

    def round(self, scale: Tensor) -> Tensor:
        """The values of the grid nearest to non-negative scales, float32 [N, ...] both."""
        value = scale if self.outer is None else scale / self.outer
        if self.format == "e4m3":  # torch versions differ in what a cast beyond 448 gives
            value = value.clamp(max=448).to(torch.float8_e4m3fn).float()
        if self.format == "fp16":
            value = value.clamp(max=_LARGEST_FP16_BF16).half().float()
        if not self.per_row:
            value = value.bfloat16().float()
        return value if self.outer is None else value * self.outer

    def split(self, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales of the grid, float32 [N, K/G], as what the kernels read.

        Returns:
            group_scale: bfloat16 [N, K/G].
            channel_scale: None or float32 [N].
        """
        if self.per_row:
            return torch.ones_like(scale).bfloat16(), scale[:, 0].contiguous()
        if self.outer is None:
            return scale.bfloat16(), None
        # Dividing by the outer scale again is off by a rounding at most, far below half a step.
        e4m3 = (scale / self.outer).to(torch.float8_e4m3fn)
        return e4m3.bfloat16(), self.outer[:, 0].contiguous()


def _channel_outer(absmax: Tensor) -> Tensor:
    outer = absmax.amax(dim=1) / (8 * _E4M3_TOP)
    return torch.where(outer < 2.0**-126, 1.0, outer)


def _tensor_outer(absmax: Tensor) -> Tensor:
    scales = absmax[absmax > 0] / 8
    exponent = 0
    if scales.numel():
        needed = math.ceil(-6 - math.log2(scales.min()))
        allowed = math.floor(math.log2(_E4M3_TOP / scales.max()))
        exponent = min(max(0, needed), allowed)
    return absmax.new_full((len(absmax),), 2.0**-exponent)


def choose_scale(
    groups: Tensor, rule: ScaleRule, grid: ScaleGrid, importance: Tensor | None = None
) -> Tensor:
    """A scale for every group.

    Args:
        groups: float32 [N, groups, G].
        rule: a divisor of the absolute maximum (codes are -8..7: /8 clips what lies above 7, /7
            clips nothing), or "mse", the best of 16 scales from absmax/13.5 to absmax/7.
        grid: the scales to choose from.
        importance: None or non-negative float32 [groups, G], what each squared error counts.

    Returns:
        float32 [N, groups], values of the grid.
    """
    absmax = groups.abs().amax(dim=2)
    if rule != "mse":
        return grid.round(absmax / _DIVISORS[rule])
    least = torch.full_like(absmax, torch.inf)
    scale = grid.round(absmax / 8)  # kept where every squared error overflows
    for share in _SHARES:
        trial = grid.round(absmax / 8 * share)
        errors = (round_codes(groups, trial[..., None]) * trial[..., None] - groups).square()
        error = (errors if importance is None else errors * importance).sum(dim=2)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, trial, scale)
    return scale


def round_codes(values: Tensor, scale: Tensor) -> Tensor:
    """The codes -8..7 nearest to values / scale, in the dtype of the values; 0 where scale is 0."""
    # A group of zeros, or one below the format's range, has scale 0: any divisor gives the code 0.
    return (values / torch.where(scale == 0, torch.inf, scale)).round_().clamp_(-8, 7)
