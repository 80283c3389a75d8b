"""Sums of random bases that are never in memory (NOLA, arXiv 2310.02556)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import typed_error


def prng_expand(
    coef: Tensor,
    shape: Sequence[int],
    seed: int,
    dist: str = "uniform",
    *,
    tensor_id: int = 0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """sum_i coef[i] * basis_i, each basis a tensor of random numbers made when it is needed.

    Element e (in row-major order) of basis i is a function of (seed, tensor_id, i, e) alone, by
    Philox4x32-10: the same on every device, whatever its size. For ``uniform`` and ``sign`` the sum
    is too, bit for bit: float32 fused multiply-adds in order of i. ``normal`` numbers are made of
    correctly rounded operations only and are meant to agree likewise.

    The public NOLA code draws from torch's generator and scales each basis by 1 / sqrt(k); here the
    bases are others, and the factor belongs into `coef`.

    Args:
        coef: float32 [k], contiguous; on the CPU also float64.
        shape: of the result.
        seed: 64 bits.
        dist: "uniform" in [-1, 1), "sign" (-1 or 1), or "normal" (mean 0, variance 1).
        tensor_id: keeps tensors of one seed apart, 0 to 2^32 - 1.
        out_dtype: float32, bfloat16 or float16, rounded once; default is the dtype of coef.

    Returns:
        A tensor of `shape`; differentiable in coef, by making the bases again.

    Raises:
        TypeError: coef or out_dtype is of another dtype.
        ValueError: a shape, dist or tensor_id does not fit.
        NotImplementedError: no kernel serves the device.
    """
    try:
        out: Tensor = torch.ops.wlib.prng_expand(
            coef, list(shape), seed, dist, tensor_id, out_dtype
        )
    except ValueError as error:
        raise typed_error(error) from None
    return out
