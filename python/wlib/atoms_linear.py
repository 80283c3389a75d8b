"""Linear layers whose weight is a sum of shared atoms, without making the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import check_shape, refuse, typed_error
from .experts import PackedInt4Experts, pack_experts
from .int4fp8 import Int4Weight

_LINEAR = "wlib.atoms_linear"


def atoms_linear(
    x: Tensor,
    atoms: Tensor | PackedInt4Experts | Sequence[Int4Weight],
    coef: Tensor,
    bias: Tensor | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """y[m] = (base + sum_s coef[s] * atoms[s]) x[m] + bias, for weights as in MASA.

    With coefficients per row of x (tenants, samples) all rows share one read of the atoms, where
    dense weights would need one per row (arXiv 2508.04581 has coefficients per layer only). For a
    single set of coefficients a dense weight, made once by `atoms_reconstruct`, is read faster than
    its atoms.

    Sums are made in float32 (float64 for float64 x) and rounded once; in a fixed order on one
    device. Under autocast x, atoms, bias and base are cast to its dtype.

    Args:
        x: [M, K], or [..., K] seen as that; float32, bfloat16 or float16, on the CPU also float64;
            copied if it is not contiguous.
        atoms: [S, N, K] of the dtype of x, contiguous, or float8_e4m3fn (not for float64 x), read
            as it is; or INT4 weights, S of them in a list or packed by `pack_experts`. Packed ones
            are read as they are, 4.125 to 4.5 bits each, and used without a rounding; a list is
            packed first, in each call. INT4 atoms that differ in group size or have zero points,
            and those of float32 x on CUDA, are converted to the dtype of x first, in each call,
            with one rounding: they save memory between calls, not time. Neither FP8 nor INT4 atoms
            get a gradient, and with INT4 atoms each backward pass makes them anew.
        coef: float32 [S], or one set per row of x, [M, S] or [..., S]; float64 if x is.
        bias: None, or [N] of the dtype of x.
        base: None, or [N, K] of the dtype of x, contiguous: an atom with coefficient 1.

    Returns:
        y [M, N], or [..., N], in the dtype of x; differentiable in x, atoms, coef, bias and base.

    Raises:
        TypeError: a dtype is none of these or differs from that of x.
        ValueError: a shape, a device or strides do not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        bias, base = (t if t is None else t.to(dtype) for t in (bias, base))
        if isinstance(atoms, Tensor) and atoms.dtype != torch.float8_e4m3fn:
            atoms = atoms.to(dtype)
    if x.dim() < 1:
        refuse(_LINEAR, "x of shape [..., K]", list(x.shape), "x")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(dtype).contiguous()
    if coef.dim() > 1:
        check_shape(_LINEAR, "coef", coef, [*x.shape[:-1], coef.shape[-1]])
        coef = coef.reshape(len(rows), coef.shape[-1])
    values, packing = _as_tensor(atoms, rows)
    try:
        y: Tensor = torch.ops.wlib.atoms_linear(
            rows, values, coef.contiguous(), bias, base, **packing
        )
    except ValueError as error:
        raise typed_error(error) from None
    return y.view(*x.shape[:-1], y.shape[-1])


def _as_tensor(
    atoms: Tensor | PackedInt4Experts | Sequence[Int4Weight], x: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Atoms as the op takes them for x, and what tells it how INT4 ones are packed."""
    if isinstance(atoms, Tensor):
        if atoms.dtype == torch.float8_e4m3fn and atoms.requires_grad:
            refuse(_LINEAR, "float8_e4m3fn atoms without requires_grad", "some with it", "atoms")
        return atoms, {}
    packed = atoms if isinstance(atoms, PackedInt4Experts) else _pack(atoms)
    if isinstance(packed, PackedInt4Experts):
        if packed.k != x.shape[1]:  # the op takes K from x: padded, two K may pack alike
            refuse(_LINEAR, f"x of shape [..., {packed.k}]", list(x.shape), "x")
        if not packed.has_zero_point and not (x.is_cuda and x.dtype == torch.float32):
            packing = {"n": packed.n, "group_size": packed.group_size}
            return packed.data, packing | {"layout_version": packed.layout_version}
        packed = [packed[i].unpack() for i in range(packed.experts)]
    return torch.stack([atom.dequantize().to(x.dtype) for atom in packed]), {}


def _pack(atoms: Sequence[Int4Weight]) -> PackedInt4Experts | Sequence[Int4Weight]:
    """The atoms in one stack if they have one group size, else themselves."""
    if not atoms or not all(isinstance(atom, Int4Weight) for atom in atoms):
        got = ", ".join(type(atom).__name__ for atom in atoms) or "none"
        refuse(_LINEAR, "a tensor or at least one Int4Weight", got, "atoms", TypeError)
    for atom in atoms:
        if (atom.n, atom.k) != (atoms[0].n, atoms[0].k):
            refuse(
                _LINEAR, f"INT4 weights of {[atoms[0].n, atoms[0].k]}", [atom.n, atom.k], "atoms"
            )
    if any(atom.group_size != atoms[0].group_size for atom in atoms):
        return atoms
    return pack_experts(atoms)
