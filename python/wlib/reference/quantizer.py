"""Float64 references of what the fused quantisers quantise, and bounds of their float32 errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .int4fp8 import F32_EPS, decode_e4m3


class Row(NamedTuple):
    """Exact values and the largest error float32 may make of them, float64 [..., K] each."""

    y: Tensor
    bound: Tensor

    def accepts(self, xq: Tensor, scale: Tensor) -> bool:
        """Whether codes and scales are what quantising values within the bound gives.

        A code stands for values within 2^-4 of its own, or within half a step of 2^-9 scales.
        """
        largest, doubt = self.y.abs().amax(dim=-1), self.bound.amax(dim=-1)
        scale = scale.double()
        right_scale = (448 * scale - largest).abs() <= doubt + 448 * scale * F32_EPS
        error = (decode_e4m3(xq) * scale[..., None] - self.y).abs()
        step = torch.maximum(self.y.abs() / 16, scale[..., None] * 2.0**-10)
        # The quotient is rounded to float32 first, and the scale's doubt may clip the largest.
        slack = self.y.abs() * 2 * F32_EPS + self.bound * 17 / 16 + doubt[..., None] * 2
        return bool(right_scale.all()) and bool((error <= step + slack).all())


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> Row:
    """y = h / sqrt(mean(h^2) + eps) * weight, of the h [..., K] that is normalised.

    Of the sum's positive terms none passes more than 12 + max(4, K / 4096) additions and one
    rounding; the mean and eps add two more. The root halves the relative error. Root, reciprocal
    and two products round once each.
    """
    k = h.shape[-1]
    exact = h.double()
    y = exact / (exact.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()
    roundings = (12 + max(4, -(-k // 4096)) + 3) / 2 + 4
    return Row(y, y.abs() * (roundings * 1.01 * F32_EPS) + 2.0**-140)


def silu_mul(gate: Tensor, up: Tensor) -> Row:
    """y = silu(gate) * up. exp is off by at most 2^-22; sum, quotient and product round once."""
    g, u = gate.double(), up.double()
    y = g / (1 + torch.exp(-g)) * u
    return Row(y, y.abs() * (2.0**-22 + 3.01 * F32_EPS) + u.abs() * 2.0**-108 + 2.0**-140)


class ExactNorm(NamedTuple):
    """Arguments of `rms_norm_fp8_quantize` with eps=0, and the y they give exactly."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    h: Tensor
    y: Tensor


def exact_norm(
    m: int, k: int, dtype: torch.dtype, generator: torch.Generator | None = None
) -> ExactNorm:
    """All |h| of a token are one power of two, so that mean and root are exact: |y| = |weight|."""
    size = torch.exp2(torch.randint(-3, 4, (m, 1), generator=generator).float())
    sign = torch.randint(0, 2, (m, k), generator=generator).float() * 2 - 1
    part = torch.randint(-4, 5, (m, k), generator=generator).float()
    weight = torch.randint(-15, 16, (k,), generator=generator).float()
    h = sign * size
    x, residual = (size * part).to(dtype), (h - size * part).to(dtype)
    return ExactNorm(x, residual, weight.to(dtype), h.to(dtype), sign * weight)


def exact_silu(
    m: int, k: int, dtype: torch.dtype, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up and y: silu is the identity for gates above 20 in float32, and 0 of 0."""
    gate = torch.randint(16, 31, (m, k), generator=generator).float() * 2
    gate[torch.rand((m, k), generator=generator) < 0.2] = 0
    up = torch.randint(-15, 16, (m, k), generator=generator).float()
    return gate.to(dtype), up.to(dtype), gate * up
