"""Schemas of the rebuild ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMAS = {
    "rebuild.default": "wlib::rebuild(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, ScalarType? out_dtype=None, int? seed=None) -> Tensor[]",
    "rebuild.out": "wlib::rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, int? seed=None, Tensor(a!)[] out) -> ()",
    "prng_expand.default": "wlib::prng_expand(Tensor coef, int[] shape, int seed, str dist, "
    "int tensor_id, ScalarType? out_dtype=None) -> Tensor",
    "prng_project.default": "wlib::prng_project(Tensor values, int count, int seed, str dist, "
    "int tensor_id) -> Tensor",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return rebuild_samples() + prng_samples()


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
