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
    if device.type != "cuda":
        return False
    found = torch.cuda.get_device_properties(device)
    return f"sm_{found.major}{found.minor}a, mode block_scaled" in _ROWS


def swizzled(scales: Tensor) -> Tensor:
    """Scales of [R, C] blocks in the 128x4 order, padded with zeros; 8-bit, of any dtype."""
    rows, columns = scales.shape
    padded = F.pad(scales.view(torch.uint8), (0, -columns % 4, 0, -rows % 128))
    atoms = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return atoms.permute(0, 3, 2, 1, 4).reshape(padded.shape).view(scales.dtype)


def multiply(
    a: tuple[Tensor, Tensor, Tensor | None],
    b: tuple[Tensor, Tensor, Tensor | None],
    alpha: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """alpha a b^T [M, N] of codes, row-major scales and global scales; N may be any."""
    n = b[0].shape[0]
    codes = F.pad(b[0], (0, 0, 0, -n % (_OUT_BYTES // out_dtype.itemsize)))
    y: Tensor = torch.ops.wlib.fp4_matmul(
        a[0],
        swizzled(a[1]),
        codes,
        swizzled(b[1]),
        a[2],
        b[2],
        alpha=alpha,
        mode="block_scaled",
        out_dtype=out_dtype,
    )
    return y[:, :n].contiguous()
