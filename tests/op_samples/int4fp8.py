"""Schemas of the int4fp8 ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import wlib

FP8 = torch.float8_e4m3fn
GEMM_OPTIONS = (
    "int n, int group_size, Tensor? bias=None, Tensor? residual=None, "
    'str activation="none", Tensor? out_scale=None, Tensor? x_sums=None'
)
SCHEMAS = {
    "fp8_quantize.default": "wlib::fp8_quantize(Tensor x, *, int? sums_group=None) -> Tensor[]",
    "rms_norm_fp8_quantize.default": "wlib::rms_norm_fp8_quantize(Tensor x, Tensor weight, *, "
    "float eps=9.9999999999999995e-07, Tensor? residual=None, int? sums_group=None) -> Tensor[]",
    "silu_mul_fp8_quantize.default": "wlib::silu_mul_fp8_quantize(Tensor gate_up, *, "
    "bool interleaved=False, int? sums_group=None) -> Tensor[]",
    "fp8_group_sums.default": "wlib::fp8_group_sums(Tensor xq, int group_size) -> Tensor",
    "int4fp8_gemm.default": "wlib::int4fp8_gemm(Tensor x, Tensor weight, Tensor x_scale, *, "
    f"{GEMM_OPTIONS}, ScalarType? out_dtype=None, int layout_version=1, "
    "bool prefetch_weight=False) -> Tensor",
    "int4fp8_gemm.out": "wlib::int4fp8_gemm.out(Tensor x, Tensor weight, Tensor x_scale, *, "
    f"{GEMM_OPTIONS}, int layout_version=1, bool prefetch_weight=False, Tensor(a!) out) -> ()",
    "int4fp8_gemm_grouped.default": "wlib::int4fp8_gemm_grouped(Tensor x, Tensor weight, "
    f"Tensor x_scale, Tensor expert_offsets, *, {GEMM_OPTIONS}, ScalarType? out_dtype=None, "
    "int layout_version=1) -> Tensor",
    "int4fp8_gemm_grouped.out": "wlib::int4fp8_gemm_grouped.out(Tensor x, Tensor weight, "
    f"Tensor x_scale, Tensor expert_offsets, *, {GEMM_OPTIONS}, int layout_version=1, "
    "Tensor(a!) out) -> ()",
}


def packed(n: int, k: int, group_size: int, zero_point: bool = False) -> wlib.PackedInt4Weight:
    """A random packed weight [n, k]."""
    groups = k // group_size
    return wlib.Int4Weight(
        codes=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        group_scale=(torch.randn(n, groups) / 50).bfloat16(),
        zero_point=torch.randn(n, groups) if zero_point else None,
    ).pack()


def gemm_arguments(
    lead: tuple[int, ...], k: int, p: wlib.PackedInt4Weight, **options: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    xq, xs = torch.ops.wlib.fp8_quantize(torch.randn(*lead, k))
    return (xq, p.data, xs), {"n": p.n, "group_size": p.group_size} | options


def grouped_arguments(
    counts: tuple[int, ...], k: int, p: list[wlib.PackedInt4Weight], **options: Any
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    (xq, _, xs), options = gemm_arguments((sum(counts),), k, p[0], **options)
    weight = torch.stack([expert.data for expert in p])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return (xq, weight, xs, offsets if sum(counts) % 2 else offsets.int()), options


def grouped_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Empty experts, no tokens at all, and every argument."""
    three = [packed(40, 256, 128) for _ in range(3)]
    zeros = [packed(70, 96, 32, True) for _ in range(2)]
    calls = [
        grouped_arguments((2, 0, 5), 256, three),
        grouped_arguments((9, 17), 96, zeros, bias=torch.randn(2, 70), out_dtype=torch.float16),
        grouped_arguments((0, 0, 0), 256, three, layout_version=1),
        grouped_arguments((1, 2, 3), 256, three, activation="silu_mul",
                          residual=torch.randn(6, 20).half(), out_dtype=torch.float32),
        grouped_arguments((4, 1), 96, zeros, out_dtype=FP8, out_scale=torch.tensor(0.5),
                          x_sums=torch.ones(3, 8), residual=torch.randn(5, 70)),
    ]  # fmt: skip
    out = []
    for arguments, options in calls:
        y = torch.ops.wlib.int4fp8_gemm_grouped(*arguments, **options)
        rest = {key: value for key, value in options.items() if key != "out_dtype"}
        out.append((arguments, {**rest, "out": y}))
    return [("int4fp8_gemm_grouped.default", *call) for call in calls] + [
        ("int4fp8_gemm_grouped.out", *call) for call in out
    ]


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls that cover every argument, empty batches and rows that lie apart."""
    quantize = [
        torch.randn(3, 64),
        torch.randn(2, 3, 64, dtype=torch.bfloat16),
        torch.randn(64, dtype=torch.float16),
        torch.randn(0, 64),
        torch.randn(5, 200)[:, 16:80],
    ]
    weight = torch.rand(64)
    norm: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((quantize[0], weight), {}),
        ((quantize[1], weight), {"residual": quantize[1] + 1, "eps": 0.1}),
        ((quantize[4], weight), {"residual": quantize[4] + 1, "sums_group": 64}),
    ]
    silu: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((quantize[0],), {}),
        ((quantize[3],), {"interleaved": True, "sums_group": 32}),
    ]
    sums = [(x.to(FP8), size) for x, size in zip(quantize, (32, 64, 64, 64, 32), strict=True)]
    gemm = [
        gemm_arguments((3,), 256, packed(40, 256, 128)),
        gemm_arguments((2, 9), 96, packed(70, 96, 32, True), bias=torch.randn(70)),
        gemm_arguments((), 128, packed(1, 128, 64), out_dtype=torch.float32),
        gemm_arguments((0,), 128, packed(9, 128, 128), layout_version=1, prefetch_weight=True),
        gemm_arguments((40,), 160, packed(9, 160, 160), bias=torch.randn(9).half(),
                       out_dtype=torch.float16),
    ]  # fmt: skip
    gemm += [
        gemm_arguments((5,), 256, packed(40, 256, 128), residual=torch.randn(5, 20),
                       activation="silu_mul"),
        gemm_arguments((2, 3), 128, packed(40, 128, 64, True), out_dtype=FP8,
                       out_scale=torch.tensor(0.5), x_sums=torch.ones(2, 8),
                       residual=torch.randn(2, 3, 40).bfloat16()),
        gemm_arguments((0, 3), 128, packed(6, 128, 128), activation="silu_mul",
                       residual=torch.randn(0, 3, 3)),
    ]  # fmt: skip
    (xq, data, xs), options = gemm[0]
    gemm.append(((torch.cat((xq, xq), dim=1)[:, :256], data, xs), options))
    out = [
        (arguments, {**options, "out": torch.ops.wlib.int4fp8_gemm(*arguments, **options)})
        for arguments, options in gemm[:8]
    ]
    for _, options in out:
        options.pop("out_dtype", None)
    return (
        [("fp8_quantize.default", (x,), {}) for x in quantize]
        + [("fp8_quantize.default", (quantize[1],), {"sums_group": 32})]
        + [("rms_norm_fp8_quantize.default", *call) for call in norm]
        + [("silu_mul_fp8_quantize.default", *call) for call in silu]
        + [("fp8_group_sums.default", call, {}) for call in sums]
        + [("int4fp8_gemm.default", *call) for call in gemm]
        + [("int4fp8_gemm.out", *call) for call in out]
        + grouped_samples()
    )
