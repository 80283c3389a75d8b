"""Problems whose true result every route must hit bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..int4fp8 import Int4Weight


class ExactProblem(NamedTuple):
    """An INT4 x FP8 matmul: x float8_e4m3fn [M, K], x_scale float32 [M], bias float32 [N]."""

    x: Tensor
    x_scale: Tensor
    weight: Int4Weight
    bias: Tensor


def problem(
    m: int,
    n: int,
    k: int,
    group_size: int,
    *,
    zero_point: bool = False,
    generator: torch.Generator | None = None,
) -> ExactProblem:
    """A random problem with every code -8..7, activations -2..2 and power-of-two scales.

    A sum over 128 columns stays below 2^12 units, so it is exact in the roughly 14 bits with which
    Hopper's FP8 tensor cores accumulate; everything after it is exact in float32.
    """

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    groups = k // group_size
    weight = Int4Weight(
        codes=integers(0, 256, n, k // 2).to(torch.uint8),
        group_scale=torch.exp2(integers(-3, 4, n, groups).float()).bfloat16(),
        zero_point=integers(-8, 8, n, groups).float() if zero_point else None,
        channel_scale=torch.exp2(integers(-2, 3, n).float()),
    )
    return ExactProblem(
        x=integers(-2, 3, m, k).to(torch.float8_e4m3fn),
        x_scale=torch.exp2(integers(-4, 3, m).float()),
        weight=weight,
        bias=integers(-16, 17, n).float(),
    )
