"""Schemas of the fp4 ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch

SCHEMAS = {
    "fp4_quantize.default": 'wlib::fp4_quantize(Tensor x, *, str format="mxfp4", '
    'str axis="rows", str scale_rule="even", int hadamard=0, Tensor? signs=None, '
    'Tensor? global_scale=None, bool packed=True, str carrier="none", int window=0, '
    "bool mask=False, bool swizzle=False) -> Tensor[]",
    "fp4_requantize_t.default": "wlib::fp4_requantize_t(Tensor codes, Tensor scales, "
    'Tensor? old_global_scale=None, *, str format="mxfp4", str scale_rule="even", '
    "int hadamard=0, Tensor? signs=None, Tensor? global_scale=None, bool packed=True, "
    'str carrier="none", int window=0, bool mask=False, bool swizzle=False) -> Tensor[]',
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
    return [
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
        ("hadamard.default", (torch.randn(2, 3, 64).half(), 32, signs), {"inverse": True}),
        ("hadamard.default", (torch.randn(5, 200)[:, 16:80], 64), {}),
    ]  # fmt: skip
