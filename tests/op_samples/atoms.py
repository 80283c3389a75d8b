"""Schemas of the atoms ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import wlib

SCHEMAS = {
    "atoms_reconstruct.default": "wlib::atoms_reconstruct(Tensor atoms, Tensor coef, "
    "Tensor? base=None, Tensor? residual_a=None, Tensor? residual_b=None, *, float scale=1., "
    "ScalarType? out_dtype=None) -> Tensor",
    "atoms_reconstruct_backward.default": "wlib::atoms_reconstruct_backward(Tensor grad, "
    "Tensor atoms, Tensor coef, *, float scale=1.) -> (Tensor, Tensor)",
    "atoms_step_.default": "wlib::atoms_step_(Tensor grad, Tensor(a!) atoms, Tensor coef, "
    "Tensor(b!) exp_avg, Tensor(c!)? exp_avg_sq, *, str rule, float scale=1., float lr, "
    "float beta1, float beta2, float eps=1e-08, float weight_decay=0., int step=1) -> Tensor",
    "atoms_combine.default": "wlib::atoms_combine(Tensor[] tensors, Tensor coef) -> Tensor[]",
    "atoms_linear.default": "wlib::atoms_linear(Tensor x, Tensor atoms, Tensor coef, "
    "Tensor? bias=None, Tensor? base=None, *, int? n=None, int? group_size=None, "
    "int layout_version=1) -> Tensor",
    "rebuild.default": "wlib::rebuild(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, ScalarType? out_dtype=None, int? seed=None) -> Tensor[]",
    "rebuild.out": "wlib::rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, int? seed=None, Tensor(a!)[] out) -> ()",
    "prng_expand.default": "wlib::prng_expand(Tensor coef, int[] shape, int seed, str dist, "
    "int tensor_id, ScalarType? out_dtype=None) -> Tensor",
    "prng_project.default": "wlib::prng_project(Tensor values, int count, int seed, str dist, "
    "int tensor_id) -> Tensor",
    "tile_sparse_matmul.default": "wlib::tile_sparse_matmul(Tensor x, Tensor values, "
    "Tensor positions, Tensor offsets, int rows, int columns, bool transposed=False, "
    "Tensor? base=None, Tensor? bias=None) -> Tensor",
    "tile_sampled_matmul.default": "wlib::tile_sampled_matmul(Tensor dy, Tensor x, "
    "Tensor positions, Tensor offsets, ScalarType? out_dtype=None) -> Tensor",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return (
        reconstruct_samples()
        + step_samples()
        + linear_samples()
        + rebuild_samples()
        + prng_samples()
        + sparse_samples()
    )


def reconstruct_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    atoms, coef, base = torch.randn(2, 4, 6), torch.randn(3, 2, 4), torch.randn(3, 4, 6)
    residual = torch.randn(3, 4, 1), torch.randn(3, 1, 6)
    return [
        ("atoms_reconstruct.default", (atoms, coef, base, *residual), {"scale": 0.5}),
        ("atoms_reconstruct_backward.default", (base.half(), atoms, coef), {}),
        ("atoms_combine.default", ([*atoms.half(), *base[:2].half()], torch.rand(3, 2)), {}),
    ]


def step_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both rules, moments in float32."""
    grad, atoms, coef = torch.randn(3, 4, 6), torch.randn(2, 4, 6), torch.randn(3, 2)
    mean, square = torch.randn(2, 4, 6), torch.rand(2, 4, 6)
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99}
    half = (grad.bfloat16(), atoms.bfloat16(), coef, mean.clone(), None)
    return [
        ("atoms_step_.default", (grad, atoms, coef, mean, square), {"rule": "adamw", **numbers}),
        ("atoms_step_.default", half, {"rule": "lion", **numbers, "weight_decay": 0.5}),
    ]


def linear_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both kinds of coefficients, with and without gradients, no rows."""
    shapes = ((3, 6), (2, 4, 6), (2,), (4,), (4, 6))
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    own = torch.randn(3, 2, requires_grad=True)
    x, atoms = torch.randn(3, 6).bfloat16(), torch.randn(2, 4, 6).bfloat16()
    packed = wlib.PackedInt4Experts.quantize(torch.randn(2, 4, 64), 32).data
    return [
        ("atoms_linear.default", tuple(leaves), {}),
        ("atoms_linear.default", (*leaves[:2], own, *leaves[3:]), {}),
        ("atoms_linear.default", (*leaves[:2], own), {}),
        ("atoms_linear.default", (x, atoms, leaves[2].detach()), {}),
        ("atoms_linear.default", (x, atoms.to(torch.float8_e4m3fn), own), {}),
        ("atoms_linear.default", (x[:0], atoms, own.detach()[:0]), {}),
        (
            "atoms_linear.default",
            (torch.randn(3, 64, requires_grad=True), packed, own),
            {"n": 4, "group_size": 32},
        ),
        (
            "atoms_linear.default",
            (torch.randn(3, 64).bfloat16(), packed, own.detach()[0]),
            {"n": 4, "group_size": 32, "layout_version": 1},
        ),
    ]


def rebuild_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every form in one call, with and without bases, gradients and mixed dtypes."""

    def operands(**options: Any) -> list[Tensor]:
        shapes = [(6, 2), (2, 8), (6, 3), (3, 8), (6, 1), (1, 8), (2, 4), (3, 2), (3, 2, 2)]
        return [torch.randn(shape, **options) for shape in shapes]

    bases = [
        torch.randn(6, 2, 4),
        torch.randn(6, 8).bfloat16(),
        torch.randn(6, 8),
        torch.randn(6, 8),
    ]
    forms, scales = [0, 1, 2, 3], [1.0, 0.5, -2.0, 0.25]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("rebuild.default", (bases, operands(requires_grad=True), forms, scales), {}),
        ("rebuild.default", ([], operands()[:8], forms[:3], scales[:3]), {}),
        ("rebuild.default", (bases, operands(dtype=torch.float16), forms, scales),
         {"out_dtype": torch.bfloat16, "seed": 3}),
        ("rebuild.default", ([], [torch.randn(0, 2), torch.randn(2, 5)], [0], [1.0]), {}),
        ("rebuild.default", ([], [torch.randn(4, 0), torch.randn(0, 5)], [0], [1.0]), {}),
        ("rebuild.out", (bases, operands(), forms, scales),
         {"out": [torch.empty(base.shape, dtype=torch.float16) for base in bases]}),
    ]  # fmt: skip
    return calls


def prng_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    coef = torch.randn(5, requires_grad=True)
    return [
        ("prng_expand.default", (coef, [3, 7], 1, "uniform", 0), {}),
        ("prng_expand.default", (coef.detach(), [40], -1, "sign", 3, torch.bfloat16), {}),
        ("prng_expand.default", (coef.detach()[:0], [2, 0], 2, "normal", 0), {}),
        ("prng_project.default", (torch.randn(3, 7), 5, 1, "normal", 0), {}),
        ("prng_project.default", (torch.randn(9).half(), 2, 1, "sign", 0), {}),
    ]


def sparse_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both directions, with and without gradients, rows that lie apart, empty batches."""
    support = wlib.sparse_support(7, 130, 0.2)
    matrix = support.positions, support.offsets, 7, 130
    x, dy = torch.randn(2, 3, 130), torch.randn(2, 3, 7)
    values = torch.randn(support.count, requires_grad=True)
    leaves = [t.clone().requires_grad_() for t in (x, dy, torch.randn(7))]
    half, short = values.detach().bfloat16(), torch.randn(4, 140).bfloat16()[:, :130]
    return [
        ("tile_sparse_matmul.default", (leaves[0], values, *matrix, False, *leaves[1:]), {}),
        ("tile_sparse_matmul.default", (dy, values, *matrix, True, x), {}),
        ("tile_sparse_matmul.default", (short, half, *matrix), {}),
        ("tile_sparse_matmul.default", (short[:0], values.detach(), *matrix), {}),
        ("tile_sampled_matmul.default", (leaves[1], leaves[0], *matrix[:2]), {}),
        ("tile_sampled_matmul.default",
         (dy.half(), x.half(), *matrix[:2], torch.float32), {}),
        ("tile_sampled_matmul.default", (dy[:0], x[:0], *matrix[:2]), {}),
    ]  # fmt: skip
