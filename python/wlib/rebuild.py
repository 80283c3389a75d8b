"""Weights rebuilt from a base and an adapter: w0 + scale * delta, one pass, one rounding.

Each function takes its operands in the order of the public implementation that its docstring names,
PEFT's or LyCORIS's, with ``scale`` = alpha / rank as those compute it. All of them

- accept float32, bfloat16 and float16, on the CPU float64 too, and any mix of the two operands and
  the base; sums run in float32 (float64 for float64 operands) and are rounded once, to the dtype of
  `out`, of `out_dtype` or of the base, in this order;
- return a tensor of the shape of the base; without a base (``w0=None``) the delta alone;
- are differentiable in the base and the operands, unless `out` is given;
- leave the base as it is: to unmerge, go back to it, or rebuild from it with other operands. With
  ``out=w0`` it is overwritten, and no subtraction brings its bits back;
- round stochastically to bfloat16 if `seed` is given, up with the probability of the fraction cut
  off: the same bits for the same seed and sums on every device.

Raises, all of them: TypeError for a dtype, ValueError for a shape, a layout or a device,
NotImplementedError where no kernel serves the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._ops.rebuild import Form
from .errors import refuse, typed_error


class Layer(NamedTuple):
    """One layer of the op: its base, its operands as matrices, and the shape of the result."""

    w0: Tensor | None
    form: Form
    operands: tuple[Tensor, ...]
    scale: float
    shape: tuple[int, ...]


def run(
    layers: Sequence[Layer],
    outs: Sequence[Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """Rebuild layers in one call of the op per kind of base: with and without one."""
    results: dict[int, Tensor] = {}
    for based in (True, False):
        chosen = [i for i, layer in enumerate(layers) if (layer.w0 is not None) is based]
        if not chosen:
            continue
        own = [layers[i] for i in chosen]
        w0 = [layer.w0 for layer in own if layer.w0 is not None]
        operands = [operand for layer in own for operand in _same_dtype(layer.operands)]
        arguments = (w0, operands, [int(x.form) for x in own], [float(x.scale) for x in own])
        try:
            if outs is None:
                made = torch.ops.wlib.rebuild(*arguments, out_dtype=out_dtype, seed=seed)
            else:
                made = [outs[i] if based else outs[i].view(_matrix(layers[i])) for i in chosen]
                torch.ops.wlib.rebuild.out(*arguments, seed=seed, out=made)
        except ValueError as error:
            raise typed_error(error) from None
        results |= dict(zip(chosen, made, strict=True))
    if outs is not None:
        return list(outs)
    return [results[i].view(layer.shape) for i, layer in enumerate(layers)]


def _matrix(layer: Layer) -> tuple[int, int]:
    a, b = layer.operands[:2]
    rows = a.shape[0] * (b.shape[0] if layer.form is Form.KRON else 1)
    return rows, -1


def _same_dtype(operands: Sequence[Tensor]) -> list[Tensor]:
    """The operands in the widest of their dtypes."""
    dtype = functools.reduce(torch.promote_types, (operand.dtype for operand in operands))
    return [operand.to(dtype) for operand in operands]


def product(
    a: Tensor, b: Tensor, w0: Tensor | None, scale: float, shape: Sequence[int] | None = None
) -> Layer:
    """The layer w0 + scale * a b, of the shape of w0 or of `shape`."""
    shape = tuple(w0.shape if w0 is not None else shape or (a.shape[0], b.shape[1]))
    return Layer(w0, Form.LOW_RANK, (a, b), scale, shape)


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their widest dtype, at least float32: what is contracted before the op."""
    dtypes = (tensor.dtype for tensor in tensors)
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _rebuild_one(
    layer: Layer, out: Tensor | None, out_dtype: torch.dtype | None, seed: int | None
) -> Tensor:
    return run([layer], None if out is None else [out], out_dtype, seed)[0]


def lora(
    w0: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float = 1.0,
    mid: Tensor | None = None,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * lora_B @ lora_A: PEFT's `get_delta_weight` of LoRA layers, LyCORIS's LoCon.

    With a core, LoCon's Tucker form ``einsum("ij...,pi,jr->pr...", mid, lora_B, lora_A)``.

    Args:
        w0: [out, in, ...] or None.
        lora_A: [r, in, ...], for convolutions with the kernel's dimensions; with a core [r, in] or
            [r, in, 1, ...].
        lora_B: [out, r] or [out, r, 1, ...].
        mid: None or [r, r, kh, kw].
    """
    return _rebuild_one(_plan_lora(w0, lora_A, lora_B, scale, mid), out, out_dtype, seed)


def _plan_lora(
    w0: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float = 1.0,
    mid: Tensor | None = None,
) -> Layer:
    if mid is None:
        shape = (lora_B.shape[0], *lora_A.shape[1:])
        return product(lora_B.flatten(1), lora_A.flatten(1), w0, scale, shape)
    shape = (lora_B.shape[0], lora_A.shape[1], *mid.shape[2:])
    return product(*_contract_core(mid, lora_B.flatten(1).T, lora_A.flatten(1)), w0, scale, shape)


def loha(
    w0: Tensor | None,
    w1_a: Tensor,
    w1_b: Tensor,
    w2_a: Tensor,
    w2_b: Tensor,
    t1: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * (w1_a @ w1_b) o (w2_a @ w2_b): PEFT's `make_weight` of LoHa (FedPara).

    With cores t [r, r, kh, kw], the product of two Tucker forms ``einsum("ijkl,jr,ip->prkl", t,
    w_b, w_a)``: PEFT's `make_weight_cp`, whose w_a is [r, out].

    Args:
        w0: [out, in, ...] or None.
        w1_a, w2_a: [out, r], with cores [r, out].
        w1_b, w2_b: [r, in * kernel], with cores [r, in].
        t1, t2: both None, or [r, r, kh, kw].
    """
    layer = _plan_loha(w0, w1_a, w1_b, w2_a, w2_b, t1, t2, scale)
    return _rebuild_one(layer, out, out_dtype, seed)


def _plan_loha(
    w0: Tensor | None,
    w1_a: Tensor,
    w1_b: Tensor,
    w2_a: Tensor,
    w2_b: Tensor,
    t1: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
) -> Layer:
    if (t1 is None) is not (t2 is None):
        refuse("wlib.rebuild.loha", "t1 and t2, or neither", "one of them", "t2")
    if t1 is None or t2 is None:
        shape = tuple(w0.shape) if w0 is not None else (w1_a.shape[0], w1_b.shape[1])
        return Layer(w0, Form.HADAMARD, (w1_a, w1_b, w2_a, w2_b), scale, shape)
    shape = (w1_a.shape[1], w1_b.shape[1], *t1.shape[2:])
    operands = (*_contract_core(t1, w1_a, w1_b), *_contract_core(t2, w2_a, w2_b))
    return Layer(w0, Form.HADAMARD, operands, scale, shape)


def _contract_core(core: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices whose product is ``einsum("ij...,ip,jr->pr...", core, a, b)``."""
    core, a, b = _wide(core, a, b)
    return a.T, torch.einsum("ij...,jr->ir...", core, b).flatten(1)


def lokr(
    w0: Tensor | None,
    w1: Tensor | None = None,
    w1_a: Tensor | None = None,
    w1_b: Tensor | None = None,
    w2: Tensor | None = None,
    w2_a: Tensor | None = None,
    w2_b: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * kron(w1, w2): PEFT's `make_kron`, LyCORIS's `lokr.diff_weight`.

    The operands come in the order of LyCORIS's tuple. Its `diff_weight` divides gamma by the rank;
    `scale` is the quotient.

    Args:
        w0: [out, in, ...] or None.
        w1: [a, b], or None: then w1_a [a, r] @ w1_b [r, b].
        w2: [out / a, in / b, ...], or None: then w2_a [out / a, r] @ w2_b [r, in / b, ...], or
            with a core t2 [r, r, kh, kw] ``einsum("ij...,ip,jr->pr...", t2, w2_a, w2_b)``.
    """
    layer = _plan_lokr(w0, w1, w1_a, w1_b, w2, w2_a, w2_b, t2, scale)
    return _rebuild_one(layer, out, out_dtype, seed)


def _plan_lokr(
    w0: Tensor | None,
    w1: Tensor | None = None,
    w1_a: Tensor | None = None,
    w1_b: Tensor | None = None,
    w2: Tensor | None = None,
    w2_a: Tensor | None = None,
    w2_b: Tensor | None = None,
    t2: Tensor | None = None,
    scale: float = 1.0,
) -> Layer:
    first = _factor("w1", w1, w1_a, w1_b, None)
    second = _factor("w2", w2, w2_a, w2_b, t2)
    rows, columns, *kernel = second.shape
    shape = (first.shape[0] * rows, first.shape[1] * columns, *kernel)
    return Layer(w0, Form.KRON, (first, second.flatten(1)), scale, shape)


def _factor(
    name: str, whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> Tensor:
    if whole is not None:
        return whole
    if a is None or b is None:
        refuse("wlib.rebuild.lokr", f"{name}, or {name}_a and {name}_b", "neither", name)
    if core is None:
        a, b = _wide(a, b)
        return (a @ b.flatten(1)).view(a.shape[0], *b.shape[1:])
    left, right = _contract_core(core, a, b)
    return (left @ right).view(left.shape[0], -1, *core.shape[2:])


def cp(
    w0: Tensor | None,
    factors: Sequence[Tensor],
    weights: Tensor | None = None,
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * sum_r weights[r] f1[:, r] o ... o fN[:, r]: TensorLy's `cp_to_tensor`.

    Not what LyCORIS once called `make_weight_cp`: that is a Tucker form, see `loha`.

    Args:
        w0: [d1, ..., dN] or None.
        factors: N matrices [d_i, r], N at least 2.
        weights: [r] or None for ones.
    """
    return _rebuild_one(_plan_cp(w0, factors, weights, scale), out, out_dtype, seed)


def _plan_cp(
    w0: Tensor | None, factors: Sequence[Tensor], weights: Tensor | None = None, scale: float = 1.0
) -> Layer:
    if len(factors) < 2:
        refuse("wlib.rebuild.cp", "at least 2 factors", len(factors), "factors")
    for i, factor in enumerate(factors):
        if factor.dim() != 2 or factor.shape[1] != factors[0].shape[1]:
            expected = f"a matrix of {factors[0].shape[-1]} columns"
            refuse("wlib.rebuild.cp", expected, list(factor.shape), f"factors[{i}]")
    first, *others = _wide(*factors)
    if weights is not None:
        first = first * weights
    rows = others[0].T
    for factor in others[1:]:  # row r of the Khatri-Rao product, transposed
        rows = (rows[:, :, None] * factor.T[:, None, :]).flatten(1)
    return product(first, rows, w0, scale, tuple(factor.shape[0] for factor in factors))


def hydra(
    w0: Tensor,
    A1: Tensor,
    B1: Tensor,
    A2: Tensor,
    B2: Tensor,
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0 + scale * (B1 A1 + B2 A2 w0): a parallel and a sequential branch, Hydra's merged weight.

    The layer computes h + scale * (B1 A1 x + B2 A2 h) with h = w0 x + b; the merged bias, which is
    not made here, is b + scale * B2 A2 b.

    Args:
        w0: [out, in].
        A1, B1: [r1, in], [out, r1].
        A2, B2: [r2, out], [out, r2].
    """
    return _rebuild_one(_plan_hydra(w0, A1, B1, A2, B2, scale), out, out_dtype, seed)


def _plan_hydra(
    w0: Tensor, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor, scale: float = 1.0
) -> Layer:
    base, A1, B1, A2, B2 = _wide(w0, A1, B1, A2, B2)
    return product(torch.cat((B1, B2), dim=1), torch.cat((A1, A2 @ base)), w0, scale)


def block_affine(
    w0: Tensor,
    bone_block: Tensor,
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Tensor:
    """w0_ij + scale * (w0_ij B_i + B_i): PEFT's Bone with ``init_weights="bat"`` (DiSHA).

    There `get_delta_weight` gives what is added to the base, without a scale.

    Args:
        w0: [out, in], cut into blocks w0_ij of r x r.
        bone_block: [out / r, r, r].
    """
    return _rebuild_one(_plan_block_affine(w0, bone_block, scale), out, out_dtype, seed)


def _plan_block_affine(w0: Tensor, bone_block: Tensor, scale: float = 1.0) -> Layer:
    return Layer(w0, Form.BLOCK_AFFINE, (bone_block.contiguous(),), scale, tuple(w0.shape))


_PLANNERS: dict[Callable[..., Tensor], Callable[..., Layer]] = {
    lora: _plan_lora,
    loha: _plan_loha,
    lokr: _plan_lokr,
    cp: _plan_cp,
    hydra: _plan_hydra,
    block_affine: _plan_block_affine,
}


def merge_many(
    calls: Sequence[functools.partial[Tensor]],
    outs: Sequence[Tensor] | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """All layers of a model in one launch per kind of base, whatever their methods.

    Args:
        calls: calls not yet made, without `out`, `out_dtype` and `seed`:
            ``functools.partial(rebuild.lora, w0, lora_A, lora_B, scale=2.0)``.
        outs: None, or a tensor to write to for each call.
        out_dtype, seed: as for a single call, the same for all.

    Returns:
        The weights, or `outs`.

    Raises:
        ValueError: a call is of another function, or there are not as many outs as calls.
    """
    where = "wlib.rebuild.merge_many"
    if outs is not None and len(outs) != len(calls):
        refuse(where, f"{len(calls)} outs", len(outs), "outs")
    layers = []
    for i, call in enumerate(calls):
        planner = _PLANNERS.get(getattr(call, "func", None))  # type: ignore[arg-type]
        if planner is None:
            expected = "a functools.partial of a function of wlib.rebuild"
            refuse(where, expected, call, f"calls[{i}]", TypeError)
        layers.append(planner(*call.args, **call.keywords))
    return run(layers, outs, out_dtype, seed)
