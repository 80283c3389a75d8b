"""Products of FP4 layers on Blackwell's FP4 tensor cores: mode "block_scaled" of `fp4_matmul`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._load import text

_OUT_BYTES = 16  # rows of the result come in multiples of it
_ROWS = text("wlib_fp4_dispatch")  # read here, so that compilers need not trace the call


def serves(device: torch.device) -> bool:
    """Whether this library has a kernel of that mode for the device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    found = torch.cuda.get_device_properties(device)
    return f"sm_{found.major}{found.minor}a, mode block_scaled" in _ROWS


def scale_shape(rows: int, per_row: int) -> tuple[int, int]:
    """Shape in the 128x4 order of [rows, per_row] scales."""
    return -(-rows // 128) * 128, -(-per_row // 4) * 4


def multiply(
    a: tuple[Tensor, Tensor, Tensor | None],
    b: tuple[Tensor, Tensor, Tensor | None],
    alpha: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """alpha a b^T [M, N] of codes, scales in the 128x4 order and global scales; N may be any."""
    codes = b[0]
    n = codes.shape[0]
    # Scales of these rows are there: the order pads to 128 rows. F.pad by nothing would copy.
    if below := -n % (_OUT_BYTES // out_dtype.itemsize):
        codes = F.pad(codes, (0, 0, 0, below))
    y: Tensor = torch.ops.wlib.fp4_matmul(
        a[0],
        a[1],
        codes,
        b[1],
        a[2],
        b[2],
        alpha=alpha,
        mode="block_scaled",
        out_dtype=out_dtype,
    )
    return y[:, :n].contiguous()
