"""Schemas of the atoms ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch

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
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return reconstruct_samples() + step_samples() + linear_samples()


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
