"""Activations in E4M3 with one scale per token: the quantiser, alone and behind other operations.

All of them make one pass over their input and give the same bits on CPU and GPU, whatever else is
in the batch. Scales are absmax/448 over a token: 0 for a token of zeros, NaN or Inf for one whose
values hold one, whose products are then NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from .errors import typed_error

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _call(op: Callable[..., list[Tensor]], *tensors: Tensor, **options: Any) -> Any:
    try:
        return tuple(op(*tensors, **options))
    except ValueError as error:
        raise typed_error(error) from None


@overload
def fp8_quantize(x: Tensor, *, sums_group: None = None) -> Two: ...
@overload
def fp8_quantize(x: Tensor, *, sums_group: int) -> Three: ...
def fp8_quantize(x: Tensor, *, sums_group: int | None = None) -> Two | Three:
    """Quantise activations to E4M3 with one scale per token.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        sums_group: None, or the group size of a weight with zero points to be multiplied with.

    Returns:
        xq: float8_e4m3fn [..., K], x / scale rounded to nearest even and saturated at 448.
        scale: float32 [...] = absmax/448 over the token; 0 for a token of zeros, NaN or Inf for a
            token that holds one, whose products are then NaN.
        x_sums: if sums_group is given, what `fp8_group_sums` makes of xq, in the same pass.

    Raises:
        TypeError: x has another dtype.
        ValueError: a shape or sums_group does not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    result: Two | Three = _call(torch.ops.wlib.fp8_quantize, x, sums_group=sums_group)
    return result


@overload
def rms_norm_fp8_quantize(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: None = None, sums_group: None = None
) -> Two: ...
@overload
def rms_norm_fp8_quantize(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: Tensor, sums_group: None = None
) -> Three: ...
@overload
def rms_norm_fp8_quantize(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: None = None, sums_group: int
) -> Three: ...
@overload
def rms_norm_fp8_quantize(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: Tensor, sums_group: int
) -> Four: ...
def rms_norm_fp8_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    sums_group: int | None = None,
) -> Two | Three | Four:
    """Add the residual, normalise by the root mean square, quantise to E4M3 (arXiv 1910.07467).

    h = x + residual in float32, rounded once to the dtype of x; all that follows is made of the
    rounded h, in float32 and in this order: y = (h * (1 / sqrt(mean(h^2) + eps))) * weight. Then y
    is quantised, without being rounded to the dtype of x first.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        weight: [K] of the dtype of x or float32.
        eps: at least 0.
        residual: None, or like x.
        sums_group: as for `fp8_quantize`.

    Returns:
        xq, scale and, if sums_group is given, x_sums, as `fp8_quantize` returns them. If there is a
        residual, the last one is the new residual h, like x.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: a shape, a device, eps or sums_group does not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    result: Two | Three | Four = _call(
        torch.ops.wlib.rms_norm_fp8_quantize,
        x,
        weight,
        eps=eps,
        residual=residual,
        sums_group=sums_group,
    )
    return result


@overload
def silu_mul_fp8_quantize(
    gate_up: Tensor, *, interleaved: bool = False, sums_group: None = None
) -> Two: ...
@overload
def silu_mul_fp8_quantize(
    gate_up: Tensor, *, interleaved: bool = False, sums_group: int
) -> Three: ...
def silu_mul_fp8_quantize(
    gate_up: Tensor, *, interleaved: bool = False, sums_group: int | None = None
) -> Two | Three:
    """SiLU of a gate times a value, quantised to E4M3: the middle of a SwiGLU (arXiv 2002.05202).

    y = silu(gate) * up in float32, silu(g) = g / (1 + exp(-g)) (-0 for g < -80), and y is quantised
    without being rounded to the dtype of gate_up first.

    Args:
        gate_up: float32, bfloat16 or float16 [..., 2 K].
        interleaved: whether columns 2 k and 2 k + 1 are gate and up of column k of y; otherwise the
            gates are the first K columns.
        sums_group: as for `fp8_quantize`.

    Returns:
        xq [..., K], scale and, if sums_group is given, x_sums, as `fp8_quantize` returns them.

    Raises:
        TypeError: gate_up has another dtype.
        ValueError: a shape or sums_group does not fit.
        NotImplementedError: no kernel serves the device of gate_up.
    """
    result: Two | Three = _call(
        torch.ops.wlib.silu_mul_fp8_quantize,
        gate_up,
        interleaved=interleaved,
        sums_group=sums_group,
    )
    return result


def fp8_group_sums(xq: Tensor, group_size: int) -> Tensor:
    """Add up the values of E4M3 codes group by group, for weights with zero points.

    Args:
        xq: float8_e4m3fn [..., K], seen as M tokens.
        group_size: columns that share a scale of the weight; they are cut into groups of at most
            s = min(group_size, 128, K) columns.

    Returns:
        float32 [ceil(K/s), P], P = M rounded up to a multiple of 4. Entry [g, m] is the sum over
        group g of token m, exact and rounded once; 0 in the padding; NaN where a code is.

    Raises:
        TypeError: xq has another dtype.
        ValueError: group_size does not fit K; on a GPU, xq or its rows are not 16-byte aligned.
        NotImplementedError: no kernel serves the device of xq.
    """
    try:
        sums: Tensor = torch.ops.wlib.fp8_group_sums(xq, group_size)
    except ValueError as error:
        raise typed_error(error) from None
    return sums
