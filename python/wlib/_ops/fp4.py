"""Fake kernels of the FP4 quantiser and matmul."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _load  # noqa: F401  registers torch.ops.wlib
from .._block_scaled import scale_shape


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
    shape = scale_shape(rows, scales) if swizzle else (rows, scales)
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
