"""Schemas of the fp4 ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch

import wlib

SCHEMAS = {
    "fp4_quantize.default": 'wlib::fp4_quantize(Tensor x, *, str format="mxfp4", '
    'str axis="rows", str scale_rule="even", int hadamard=0, Tensor? signs=None, '
    'Tensor? global_scale=None, bool packed=True, str carrier="none", int window=0, '
    "bool mask=False, bool swizzle=False, bool square=False, "
    'str rounding="nearest", Tensor? seed=None, int offset=0) -> Tensor[]',
    "fp4_requantize_t.default": "wlib::fp4_requantize_t(Tensor codes, Tensor scales, "
    'Tensor? old_global_scale=None, *, str format="mxfp4", str scale_rule="even", '
    "int hadamard=0, Tensor? signs=None, Tensor? global_scale=None, bool packed=True, "
    'str carrier="none", int window=0, bool mask=False, bool swizzle=False, '
    'bool square=False, str rounding="nearest", Tensor? seed=None, int offset=0) -> Tensor[]',
    "fp4_signs.default": "wlib::fp4_signs(Tensor seed, int size, *, int offset=0) -> Tensor",
    "fp4_next.default": "wlib::fp4_next(Tensor(a0!) state) -> Tensor",
    "fp4_linear.default": "wlib::fp4_linear(Tensor x, Tensor w, Tensor? bias, "
    "Tensor[] w_quantized, Tensor rng, str recipe, ScalarType out_dtype) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    "fp4_linear_backward.default": "wlib::fp4_linear_backward(Tensor dy, Tensor? x, Tensor? w, "
    "Tensor[] x_saved, Tensor[] w_quantized, Tensor rng, str recipe, SymInt k, "
    "ScalarType x_dtype, ScalarType w_dtype, bool[] wanted) -> (Tensor, Tensor)",
    "fp4_matmul.default": "wlib::fp4_matmul(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
    'Tensor? a_global=None, Tensor? b_global=None, *, float alpha=1., str mode="fold8", '
    "ScalarType? out_dtype=None) -> Tensor",
    "hadamard.default": "wlib::hadamard(Tensor x, int size, Tensor? signs=None, *, "
    "bool inverse=False) -> Tensor",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of the fp4 ops that cover every argument."""
    signs = torch.ones(32, dtype=torch.int8)
    nv = {"format": "nvfp4", "scale_rule": "four_over_six"}
    both = {"carrier": "e5m2", "mask": True, "swizzle": True, "axis": "both"}
    a = torch.ops.wlib.fp4_quantize(torch.randn(5, 64), carrier="e4m3")
    b = torch.ops.wlib.fp4_quantize(torch.randn(32, 64), scale_rule="amax", format="nvfp4")
    c = torch.ops.wlib.fp4_quantize(torch.randn(64, 32))
    d = torch.ops.wlib.fp4_quantize(torch.randn(8, 64), swizzle=True)
    random = {"rounding": "stochastic", "seed": torch.tensor(7), "offset": 3}
    eden = {"format": "nvfp4", "scale_rule": "amax", "rounding": "ms_eden",
            "seed": torch.tensor([7, 1])}  # fmt: skip
    return [
        *linear_samples(),
        ("fp4_quantize.default", (torch.randn(32, 64),), {**random, "axis": "both"}),
        ("fp4_quantize.default", (torch.randn(32, 64),), eden),
        ("fp4_quantize.default", (torch.randn(40, 64),), {"format": "nvfp4", "scale_rule": "amax",
                                                          "square": True}),
        ("fp4_requantize_t.default", (c[0], c[1]), {**eden, "hadamard": 32, "signs": signs}),
        ("fp4_signs.default", (torch.tensor([1, 2]), 64), {"offset": 5}),
        ("fp4_next.default", (torch.tensor([7, 3]),), {}),
        ("fp4_quantize.default", (torch.randn(3, 64),), {}),
        ("fp4_quantize.default", (torch.randn(32, 64).half(),), both),
        ("fp4_quantize.default", (torch.randn(0, 64), ), {"hadamard": 32, "signs": signs}),
        ("fp4_quantize.default", (torch.randn(3, 80)[:, :64].bfloat16(),), nv),
        ("fp4_quantize.default", (torch.randn(64, 3),), {"axis": "columns", "packed": False,
                                                         "carrier": "e4m3", "window": 9}),
        ("fp4_quantize.default", (torch.randn(3, 64),), {**nv, "global_scale": torch.tensor(0.1)}),
        ("fp4_requantize_t.default", (b[0], b[1], b[2]), {"hadamard": 16}),
        ("fp4_requantize_t.default", (c[0], c[1]), nv),
        ("fp4_matmul.default", (a[3], a[4], a[0], a[1]), {"out_dtype": torch.float32}),
        ("fp4_matmul.default", (b[0], b[1], a[0], a[1], b[2]), {"mode": "bf16", "alpha": 0.5}),
        ("fp4_matmul.default", (a[0], a[1], a[0], a[1]), {"mode": "exact32"}),
        ("fp4_matmul.default", (d[0], d[1], d[0], d[1]), {"mode": "block_scaled"}),
        ("hadamard.default", (torch.randn(2, 3, 64).half(), 32, signs), {"inverse": True}),
        ("hadamard.default", (torch.randn(5, 200)[:, 16:80], 64), {}),
    ]  # fmt: skip


def linear_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both passes of a linear layer by every recipe, and with the forward pass in FP8 and BF16."""
    recipes = [wlib.FP4Recipe.named(name) for name in ("wlib", "quartet", "quartet2", "nvidia")]
    recipes += [wlib.FP4Recipe(forward=kind) for kind in ("fp8", "bf16")]
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    rng = torch.tensor([1, 0])
    for recipe in recipes:
        x, w = torch.randn(5, 40), torch.randn(7, 40)
        quantized = wlib.fp4_weight(w, recipe)
        text = recipe.text  # type: ignore[attr-defined]
        call = (x, w, torch.randn(7), quantized, rng, text, torch.bfloat16)
        found.append(("fp4_linear.default", call, {}))
        saved = [t.clone() for t in torch.ops.wlib.fp4_linear(*call)[1:]]
        types = torch.float32, torch.bfloat16
        call = (torch.randn(5, 7), x, w, saved, quantized, rng, text, 40, *types, [True, True])
        found.append(("fp4_linear_backward.default", call, {}))
    return found
