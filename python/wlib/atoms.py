"""Weights of many layers as sums of shared atoms.

W[l] = base[l] + scale * sum_s coef[l, s] * atoms[s] + A[l] B[l], as in MASA (arXiv 2508.04581), and
everything else that is such a sum: task vectors, averages of checkpoints, template mixing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import check_dtype, check_shape, refuse, typed_error

_FROM_LAYERS = "wlib.atoms_from_layers"
_COMBINE = "wlib.combine"
_CHUNK = 1 << 20  # elements per layer whose products are added up in float32


def atoms_reconstruct(
    atoms: Tensor,
    coef: Tensor,
    base: Tensor | None = None,
    residual: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The weights of all layers in one pass over the atoms (MASA, arXiv 2508.04581).

    W[l] = base[l] + scale * sum_s coef[l, s] * atoms[s] + A[l] B[l], accumulated in float32
    (float64 for float64 atoms) and rounded once. Differentiable in all tensors; the gradients of
    atoms and coef come from one pass, in a fixed order of summation.

    Args:
        atoms: float32, bfloat16 or float16 [S, *shape], contiguous; on the CPU also float64.
        coef: float32 [L, S], or [L, S, shape[0]] with a coefficient per output channel; float64 if
            the atoms are.
        base: None or floating point [L, *shape], contiguous.
        residual: None or (A [L, shape[0], r], B [L, r, rest of shape]) of one floating point type.
        scale: factor of the sum over atoms.
        out_dtype: dtype of the result; that of the atoms by default. Masters in float32 with
            out_dtype=bfloat16 are read once and cast on the way.

    Returns:
        W [L, *shape].

    Raises:
        TypeError: a dtype is none of these; float64 goes with float64 only.
        ValueError: a shape, a device or strides do not fit.
        NotImplementedError: no kernel serves the device of atoms.
    """
    a, b = residual if residual is not None else (None, None)
    op = torch.ops.wlib.atoms_reconstruct
    try:
        w: Tensor = op(atoms, coef.contiguous(), base, a, b, scale=scale, out_dtype=out_dtype)
    except ValueError as error:
        raise typed_error(error) from None
    return w


class Atoms(NamedTuple):
    """What `atoms_from_layers` returns: W[l] is close to sum_s coef[l, s] * atoms[s].

    Attributes:
        atoms: [S, *shape] in the dtype of the weights, orthonormal as vectors.
        coef: float32 [L, S].
        kept_energy: sum of squares of the projections over that of the weights, 0 to 1.
    """

    atoms: Tensor
    coef: Tensor
    kept_energy: float


def atoms_from_layers(weights: Tensor | Sequence[Tensor], num_atoms: int) -> Atoms:
    """The best `num_atoms` shared atoms of a group of layers: Matrix PCA of MASA.

    No other S matrices leave a smaller sum of squared errors. The L x L Gram matrix is summed in
    float64 from float32 products, so that small eigenvalues survive weights in bfloat16.

    Args:
        weights: [L, *shape], or L tensors of one shape, dtype and device; floating point.
        num_atoms: S, 1 to L.

    Raises:
        TypeError: the weights are not floating point.
        ValueError: the weights differ in shape, or num_atoms is out of range.
    """
    w = weights if isinstance(weights, Tensor) else _stack(weights)
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    check_dtype(_FROM_LAYERS, "weights", w, *floats)
    if w.dim() < 2 or w.numel() == 0:
        refuse(_FROM_LAYERS, "weights of shape [L, ...]", list(w.shape), "weights")
    if not 1 <= num_atoms <= len(w):
        refuse(_FROM_LAYERS, f"num_atoms from 1 to {len(w)}", num_atoms, "num_atoms")
    w = w.detach().contiguous()
    energy, vectors = torch.linalg.eigh(_gram(w.flatten(1)))
    energy = energy.flip(0).clamp_min(0)
    vectors = vectors.flip(1)[:, :num_atoms]
    kept = energy[:num_atoms]
    size = kept.sqrt()
    # Of directions without energy nothing can be normalised: their atoms are zero.
    inverse = torch.where(kept > energy.sum() * 1e-14, 1 / size, 0.0)
    accumulated = torch.float64 if w.dtype == torch.float64 else torch.float32
    projection = (vectors * inverse).T.to(accumulated)
    total = energy.sum()
    share = float(kept.sum() / total) if total > 0 else 1.0
    return Atoms(atoms_reconstruct(w, projection), (vectors * size).float(), share)


def _stack(weights: Sequence[Tensor]) -> Tensor:
    if not weights:
        refuse(_FROM_LAYERS, "at least one weight", "none", "weights")
    for w in weights:
        check_dtype(_FROM_LAYERS, "weights", w, weights[0].dtype)
        check_shape(_FROM_LAYERS, "weights", w, weights[0].shape)
    return torch.stack(list(weights))


def _gram(rows: Tensor) -> Tensor:
    """rows @ rows.T in float64, from float32 products of chunks."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for chunk in rows.split(_CHUNK, dim=1):
        part = chunk if chunk.dtype == torch.float64 else chunk.float()
        gram += part @ part.T
    return gram


def combine(tensor_lists: Sequence[Sequence[Tensor]], coef: Tensor) -> list[list[Tensor]]:
    """P weighted sums of S checkpoints, each tensor read once for all of them.

    outs[p][t] = sum_s coef[p, s] * tensor_lists[s][t], accumulated in float32 (float64 for float64
    tensors) and rounded once. Averages of checkpoints (LCSC, arXiv 2404.02241), task vectors, EMA.
    Not differentiable.

    Args:
        tensor_lists: S lists of T contiguous tensors; tensor t of every list has the same shape and
            dtype (float32, bfloat16, float16; on the CPU also float64).
        coef: float32 [P, S], or [S] for one sum; float64 if the tensors are.

    Returns:
        P lists of T new tensors.

    Raises:
        TypeError: a dtype is none of these, or differs between lists.
        ValueError: a shape, a device or strides do not fit.
        NotImplementedError: no kernel serves the device of the tensors.
    """
    width = len(tensor_lists[0]) if tensor_lists else 0
    for tensors in tensor_lists:
        if len(tensors) != width:
            refuse(_COMBINE, f"lists of {width} tensors", len(tensors), "tensor_lists")
    if not isinstance(coef, Tensor) or coef.shape[-1:] != (len(tensor_lists),):
        got = list(coef.shape) if isinstance(coef, Tensor) else type(coef).__name__
        expected = f"coef of shape [P, {len(tensor_lists)}] or [{len(tensor_lists)}]"
        refuse(_COMBINE, expected, got, "coef")
    flat = [t.detach() for tensors in tensor_lists for t in tensors]
    rows = coef.detach().view(-1, len(tensor_lists)) if coef.dim() == 1 else coef.detach()
    try:
        outs = torch.ops.wlib.atoms_combine(flat, rows.contiguous())
    except ValueError as error:
        raise typed_error(error) from None
    return [outs[i : i + width] for i in range(0, len(outs), width)]
