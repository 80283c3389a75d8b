"""Float64 reference of the INT4 x FP8 matmul, sharing no code with the ops it judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..int4fp8 import Activation, Int4Weight

F32_EPS = 2.0**-24  # largest relative error of one float32 rounding


class Reference(NamedTuple):
    """Exact result and the scale its rounding errors are measured on, float64 [M, N] each."""

    y: Tensor
    magnitude: Tensor

    def bound(self, k: int, out_dtype: torch.dtype) -> Tensor:
        """Largest error float32 accumulation in any order and one final rounding can make.

        A term passes through at most k additions and eight other roundings (code minus zero point,
        scales, the odd-code correction, bias); the result is then rounded to `out_dtype` once.
        """
        accumulated = (k + 8) * F32_EPS * self.magnitude
        info = torch.finfo(out_dtype)
        rounding = (self.y.abs() + accumulated) * (info.eps / 2)
        return accumulated + rounding.clamp_min(info.smallest_normal * info.eps / 2)


def decode_e4m3(x: Tensor) -> Tensor:
    """Values of float8_e4m3fn codes as float64, from the definition of the format."""
    bits = torch.arange(256, dtype=torch.float64, device=x.device)
    sign = torch.where(bits < 128, 1.0, -1.0)
    exponent = (bits % 128 / 8).floor()
    mantissa = bits % 8
    subnormal = mantissa * 2.0**-9
    normal = (1 + mantissa / 8) * torch.exp2(exponent - 7)
    table = sign * torch.where(exponent == 0, subnormal, normal)
    table[[127, 255]] = torch.nan
    return table[x.view(torch.uint8).long()]


def group_sums(xq: Tensor, group_size: int) -> Tensor:
    """Sums of E4M3 codes [..., K], float64 [groups, tokens rounded up to a multiple of 4]."""
    values = decode_e4m3(xq).flatten(0, -2) if xq.dim() > 1 else decode_e4m3(xq)[None]
    parts = values.split(min(group_size, 128), dim=1)
    sums = torch.stack([part.sum(dim=1) for part in parts])
    return torch.nn.functional.pad(sums, (0, -len(values) % 4))


def int4fp8_gemm(
    xq: Tensor,
    weight: Int4Weight,
    xs: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    out_scale: Tensor | None = None,
) -> Reference:
    """y = xs * channel_scale * sum_g s * sum_k x * (code - zero_point) + bias, and what follows.

    Args:
        xq: float8_e4m3fn [M, K].
        weight: the weight [N, K] on the device of xq.
        xs: float32 [M].
        bias: None or floating point [N].
        residual, activation, out_scale: as `wlib.int4fp8_gemm` takes them.

    Returns:
        y, and the sum of the absolute values of everything any route may add up to reach it: each
        product counts with |code| + |zero_point| + 1, since kernels may form 2 code + 1 first.
    """
    x = decode_e4m3(xq)
    n, group_size = weight.n, weight.group_size
    nibbles = torch.stack((weight.codes % 16, weight.codes // 16), dim=2).view(n, -1).double()
    codes = torch.where(nibbles < 8, nibbles, nibbles - 16)
    scales = weight.group_scale.double()
    zeros = torch.zeros_like(scales) if weight.zero_point is None else weight.zero_point.double()
    y = x.new_zeros(len(x), n)
    magnitude = torch.zeros_like(y)
    for g in range(scales.shape[1]):
        part = slice(g * group_size, (g + 1) * group_size)
        code, zero, scale = codes[:, part], zeros[:, g : g + 1], scales[:, g]
        y += scale * (x[:, part] @ (code - zero).T)
        magnitude += scale.abs() * (x[:, part].abs() @ (code.abs() + zero.abs() + 1).T)
    factor = xs.double()[:, None]
    if weight.channel_scale is not None:
        factor = factor * weight.channel_scale.double()
    y, magnitude = y * factor, magnitude * factor.abs()
    if bias is not None:
        y, magnitude = y + bias.double(), magnitude + bias.double().abs()
    if activation == "silu_mul":
        y, magnitude = _silu_mul(y, magnitude)
    if residual is not None:
        y, magnitude = y + residual.double(), magnitude + residual.double().abs()
    if out_scale is not None:
        y, magnitude = y / out_scale.double(), magnitude / out_scale.double().abs()
        y = y.clamp(-448, 448)
    return Reference(y, magnitude)


def _silu_mul(v: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up of alternating columns, and what errors relative to `magnitude` grow to.

    With errors of at most e * magnitude in gate and up, and a slope of silu of at most 1.1, the
    product is off by at most e times the sum below, if e is at most 2^-8; |y| stands for the
    roundings on the way.
    """
    (gate, up), (gate_magnitude, up_magnitude) = ((t[:, 0::2], t[:, 1::2]) for t in (v, magnitude))
    silu = gate / (1 + torch.exp(-gate))
    y = silu * up
    from_gate = 1.1 * gate_magnitude * (up.abs() + 2.0**-8 * up_magnitude)
    return y, from_gate + silu.abs() * up_magnitude + y.abs()


def int4fp8_gemm_grouped(
    xq: Tensor,
    weights: Sequence[Int4Weight],
    xs: Tensor,
    counts: Sequence[int],
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    out_scale: Tensor | None = None,
) -> Reference:
    """`int4fp8_gemm` of each expert e with its counts[e] tokens; bias is None or [E, N]."""
    parts = []
    first = 0
    for expert, (weight, count) in enumerate(zip(weights, counts, strict=True)):
        rows = slice(first, first + count)
        one = int4fp8_gemm(
            xq[rows],
            weight,
            xs[rows],
            None if bias is None else bias[expert],
            residual=None if residual is None else residual[rows],
            activation=activation,
            out_scale=out_scale,
        )
        parts.append(one)
        first += count
    return Reference(torch.cat([p.y for p in parts]), torch.cat([p.magnitude for p in parts]))
