"""Fake kernels: what ``torch.compile`` and ``torch.export`` know of each op without running it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _load  # noqa: F401  registers torch.ops.wlib


def _sums_shape(shape: torch.Size, group_size: int) -> tuple[int, int]:
    """Groups of at most 128 columns, and the tokens of x rounded up to a multiple of 4."""
    *lead, k = shape
    return -(-k // min(group_size, 128)), -(-math.prod(lead) // 4) * 4


@torch.library.register_fake("wlib::fp8_quantize")
def _fp8_quantize(x: Tensor, *, sums_group: int | None = None) -> list[Tensor]:
    return _quantized(x, x.shape, sums_group)


@torch.library.register_fake("wlib::rms_norm_fp8_quantize")
def _rms_norm_fp8_quantize(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    sums_group: int | None = None,
) -> list[Tensor]:
    outputs = _quantized(x, x.shape, sums_group)
    if residual is not None:
        outputs.append(torch.empty(x.shape, dtype=x.dtype, device=x.device))
    return outputs


@torch.library.register_fake("wlib::silu_mul_fp8_quantize")
def _silu_mul_fp8_quantize(
    gate_up: Tensor, *, interleaved: bool = False, sums_group: int | None = None
) -> list[Tensor]:
    *lead, columns = gate_up.shape
    return _quantized(gate_up, torch.Size((*lead, columns // 2)), sums_group)


def _quantized(like: Tensor, shape: torch.Size, sums_group: int | None) -> list[Tensor]:
    """Codes of this shape, scales and, if asked, group sums."""
    outputs = [
        torch.empty(shape, dtype=torch.float8_e4m3fn, device=like.device),
        torch.empty(shape[:-1], dtype=torch.float32, device=like.device),
    ]
    if sums_group is not None:
        sums = _sums_shape(shape, sums_group)
        outputs.append(torch.empty(sums, dtype=torch.float32, device=like.device))
    return outputs


@torch.library.register_fake("wlib::fp8_group_sums")
def _fp8_group_sums(xq: Tensor, group_size: int) -> Tensor:
    return xq.new_empty(_sums_shape(xq.shape, group_size), dtype=torch.float32)


@torch.library.register_fake("wlib::int4fp8_gemm")
def _int4fp8_gemm(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout_version: int = 1,
    prefetch_weight: bool = False,
) -> Tensor:
    shape = (*x.shape[:-1], n // 2 if activation == "silu_mul" else n)
    return torch.empty(shape, dtype=out_dtype or torch.bfloat16, device=x.device)


@torch.library.register_fake("wlib::int4fp8_gemm.out")
def _int4fp8_gemm_out(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    *,
    n: int,
    group_size: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
    layout_version: int = 1,
    prefetch_weight: bool = False,
    out: Tensor,
) -> None:
    pass


@torch.library.register_fake("wlib::int4fp8_gemm_grouped")
def _int4fp8_gemm_grouped(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    expert_offsets: Tensor,
    *,
    n: int,
    group_size: int,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    **options: Tensor | int | None,
) -> Tensor:
    shape = (x.shape[0], n // 2 if activation == "silu_mul" else n)
    return torch.empty(shape, dtype=out_dtype or torch.bfloat16, device=x.device)


@torch.library.register_fake("wlib::int4fp8_gemm_grouped.out")
def _int4fp8_gemm_grouped_out(*arguments: Tensor, **options: Tensor | int | str | None) -> None:
    pass


@torch.library.register_fake("wlib::append_kv_int4")
def _append_kv_int4(
    k: Tensor,
    v: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    *,
    k_mean: Tensor | None = None,
    k_smooth: Tensor | None = None,
) -> None:
    pass


@torch.library.register_fake("wlib::quantize_q_fp8")
def _quantize_q_fp8(
    q: Tensor,
    *,
    k_smooth: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    codes = torch.empty(q.shape, dtype=torch.float8_e4m3fn, device=q.device)
    return codes, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)


@torch.library.register_fake("wlib::attention_prefill")
def _attention_prefill(
    q: Tensor, *tensors: Tensor, out_dtype: torch.dtype | None = None, **options: object
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=out_dtype or torch.bfloat16, device=q.device)
    return out, torch.empty((heads, tokens), dtype=torch.float32, device=q.device)


def _fp4_side(
    like: Tensor,
    rows: int,
    columns: int,
    format: str,
    global_scale: Tensor | None,
    packed: bool,
    carrier: str,
    mask: bool,
    swizzle: bool,
) -> list[Tensor]:
    """The six outputs of one side; absent ones have shape [0]."""
    scale_type, block = (torch.uint8, 32) if format == "mxfp4" else (torch.float8_e4m3fn, 16)
    carrier_type = torch.float8_e5m2 if carrier == "e5m2" else torch.float8_e4m3fn
    scales = columns // block
    shape = (-(-rows // 128) * 128, -(-scales // 4) * 4) if swizzle else (rows, scales)
    outputs: list[tuple[bool, tuple[int, ...], torch.dtype]] = [
        (packed, (rows, columns // 2), torch.uint8),
        (packed, shape, scale_type),
        (format == "nvfp4" and global_scale is None, (), torch.float32),
        (carrier != "none", (rows, columns), carrier_type),
        (carrier != "none", (rows,), torch.float32),
        (mask, (rows, columns // 8), torch.uint8),
    ]
    return [
        like.new_empty(shape if wanted else (0,), dtype=dtype) for wanted, shape, dtype in outputs
    ]


@torch.library.register_fake("wlib::fp4_quantize")
def _fp4_quantize(
    x: Tensor,
    *,
    format: str = "mxfp4",
    axis: str = "rows",
    scale_rule: str = "even",
    hadamard: int = 0,
    signs: Tensor | None = None,
    global_scale: Tensor | None = None,
    packed: bool = True,
    carrier: str = "none",
    window: int = 0,
    mask: bool = False,
    swizzle: bool = False,
    square: bool = False,
    rounding: str = "nearest",
    seed: Tensor | None = None,
    offset: int = 0,
) -> list[Tensor]:
    r, c = x.shape
    sides = {"rows": [(r, c)], "columns": [(c, r)], "both": [(r, c), (c, r)]}[axis]
    return [
        t
        for rows, columns in sides
        for t in _fp4_side(x, rows, columns, format, global_scale, packed, carrier, mask, swizzle)
    ]


@torch.library.register_fake("wlib::fp4_requantize_t")
def _fp4_requantize_t(
    codes: Tensor,
    scales: Tensor,
    old_global_scale: Tensor | None = None,
    *,
    format: str = "mxfp4",
    scale_rule: str = "even",
    hadamard: int = 0,
    signs: Tensor | None = None,
    global_scale: Tensor | None = None,
    packed: bool = True,
    carrier: str = "none",
    window: int = 0,
    mask: bool = False,
    swizzle: bool = False,
    square: bool = False,
    rounding: str = "nearest",
    seed: Tensor | None = None,
    offset: int = 0,
) -> list[Tensor]:
    r, half = codes.shape
    return _fp4_side(codes, half * 2, r, format, global_scale, packed, carrier, mask, swizzle)


@torch.library.register_fake("wlib::fp4_matmul")
def _fp4_matmul(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    a_global: Tensor | None = None,
    b_global: Tensor | None = None,
    *,
    alpha: float = 1.0,
    mode: str = "fold8",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16)


@torch.library.register_fake("wlib::fp4_signs")
def _fp4_signs(seed: Tensor, size: int, *, offset: int = 0) -> Tensor:
    return seed.new_empty((size,), dtype=torch.int8)


@torch.library.register_fake("wlib::hadamard")
def _hadamard(
    x: Tensor, size: int, signs: Tensor | None = None, *, inverse: bool = False
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
