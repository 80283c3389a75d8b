"""Weights in Tucker form: a small core, multiplied along every dimension by a factor.

W[i1, ..., iN] = sum over j of core[j1, ..., jN] * factors[0][i1, j1] * ... * factors[N-1][iN, jN]

(TensorLy's `tucker_to_tensor`; FLoRA, arXiv 2405.14739, adds it to a weight.) The core is
contracted with all factors but one, the last dimension first; what is left is a product of two
matrices, so that every step is one call of `torch.ops.wlib.rebuild`, for one layer as for hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import rebuild
from .errors import check_shape, refuse


class TuckerLayer(NamedTuple):
    """One layer of `tucker_merge_many`: the arguments of `tucker_merge`."""

    w0: Tensor | None
    core: Tensor
    factors: Sequence[Tensor]
    scale: float = 1.0


def tucker_reconstruct(
    core: Tensor, factors: Sequence[Tensor], *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor that a core and its factors stand for, of any number of dimensions.

    Args:
        core: [r1, ..., rN], N at least 1.
        factors: N matrices [d_i, r_i].
        out_dtype: dtype of the result; default is float32, float64 if an operand is.

    Returns:
        [d1, ..., dN], contiguous; differentiable in the core and the factors.

    Raises:
        TypeError: a dtype is not floating point.
        ValueError: a shape or a device does not fit.
        NotImplementedError: no kernel serves the device.
    """
    return _merge("wlib.tucker_reconstruct", [TuckerLayer(None, core, factors)], None, out_dtype)[0]


def tucker_merge(
    w0: Tensor,
    core: Tensor,
    factors: Sequence[Tensor],
    scale: float = 1.0,
    out: Tensor | None = None,
    *,
    in_first: bool = False,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * tucker_reconstruct(core, factors): w0 read once, one rounding.

    Args:
        w0: [d1, ..., dN], contiguous. The weight of a grouped convolution has in / groups as its
            second dimension, and so has its factor.
        core: [r1, ..., rN].
        factors: N matrices [d_i, r_i].
        scale: factor of what is added.
        out: tensor to write to, may be w0; its dtype is the dtype of the result.
        in_first: core and factors name the input dimension first, as FLoRA's do: core [r_in,
            r_out, ...] and factors [in, r_in], [out, r_out], ... for w0 [out, in, ...].
        out_dtype: dtype of the result; default is that of w0.
        seed: round stochastically to bfloat16, see `wlib.rebuild`.

    Returns:
        The sum, of the shape of w0, or `out`; differentiable unless `out` is given.

    Raises:
        As `tucker_reconstruct`.
    """
    layer = TuckerLayer(w0, core, factors, scale)
    outs = None if out is None else [out]
    return tucker_merge_many([layer], outs, in_first=in_first, out_dtype=out_dtype, seed=seed)[0]


def tucker_merge_many(
    layers: Sequence[TuckerLayer | tuple[Tensor, Tensor, Sequence[Tensor], float]],
    outs: Sequence[Tensor] | None = None,
    *,
    in_first: bool = False,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """`tucker_merge` of many layers: one launch per dimension, however many layers there are.

    Args:
        layers: tuples (w0, core, factors, scale).
        outs: None, or a tensor to write to for each layer.
        in_first, out_dtype, seed: as in `tucker_merge`, for all layers.

    Returns:
        The merged weights, or `outs`.

    Raises:
        As `tucker_reconstruct`.
    """
    where = "wlib.tucker_merge"
    named = [TuckerLayer(*layer) for layer in layers]
    if outs is not None and len(outs) != len(named):
        refuse(where, f"{len(named)} outs", len(outs), "outs")
    if in_first:
        named = [_out_first(where, layer) for layer in named]
    return _merge(where, named, outs, out_dtype, seed)


def _out_first(where: str, layer: TuckerLayer) -> TuckerLayer:
    if layer.core.dim() < 2 or len(layer.factors) < 2:
        refuse(where, "core of at least 2 dimensions", layer.core.dim(), "core")
    first, second, *others = layer.factors
    core = layer.core.transpose(0, 1)
    return TuckerLayer(layer.w0, core, [second, first, *others], layer.scale)


def _merge(
    where: str,
    layers: Sequence[TuckerLayer],
    outs: Sequence[Tensor] | None,
    out_dtype: torch.dtype | None,
    seed: int | None = None,
) -> list[Tensor]:
    for layer in layers:
        _check(where, layer)
    # What is left of each core: [d_k, ..., d_N, r_1, ..., r_(k-1)], contracted dimensions first.
    rest = [_wide(layer.core) for layer in layers]
    for step in range(1, max([1, *(layer.core.dim() for layer in layers)])):
        chosen = [i for i, layer in enumerate(layers) if step < layer.core.dim()]
        products = []
        for i in chosen:
            factor = layers[i].factors[-step]
            shape = (factor.shape[0], *rest[i].shape[:-1])
            b = rest[i].flatten(0, -2).T
            products.append(rebuild.product(_wide(factor), b, None, 1.0, shape))
        for i, made in zip(chosen, rebuild.run(products), strict=True):
            rest[i] = made
    last = []
    for layer, b in zip(layers, rest, strict=True):
        shape = tuple(factor.shape[0] for factor in layer.factors)
        b = b.reshape(-1, b.shape[-1]).T
        a = _wide(layer.factors[0])
        last.append(rebuild.product(a, b, layer.w0, layer.scale, shape))
    return rebuild.run(last, outs, out_dtype, seed)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _check(where: str, layer: TuckerLayer) -> None:
    """The shapes fit together; dtypes and devices are the op's to check."""
    core, factors = layer.core, layer.factors
    if core.dim() == 0:
        refuse(where, "core of at least one dimension", list(core.shape), "core")
    if len(factors) != core.dim():
        refuse(where, f"{core.dim()} factors", len(factors), "factors")
    for i, factor in enumerate(factors):
        expected = f"a factor of shape [*, {core.shape[i]}]"
        if factor.dim() != 2 or factor.shape[1] != core.shape[i]:
            refuse(where, expected, list(factor.shape), f"factors[{i}]")
    if layer.w0 is not None:
        check_shape(where, "w0", layer.w0, [factor.shape[0] for factor in factors])
