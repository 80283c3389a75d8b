"""The INT4 cache of keys and values, layout version 1: blocks of 64 tokens of one KV head.

`include/wlib/layout/int4_kv.h` states the same layout for the kernels. A run is a matrix of codes,
keys [64 tokens][head_dim] or values [head_dim][64 slots], as units of 16 bytes that hold 32
neighbouring columns of a row, [columns / 32][rows][16]. Byte j of a unit joins columns j and
16 + j; in every four bytes a code is a sign and a magnitude, placed so that one AND, or a rotation
by four and the same AND, leaves four exact E4M3 numbers code * 2^-9.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_TOKENS = 64
LARGEST_CODE = 7


def value_slots(device: torch.device | None = None) -> Tensor:
    """int64 [64], the slot in which the values of each token of a block are stored."""
    token = torch.arange(BLOCK_TOKENS, device=device)
    return token // 16 * 16 + token % 8 // 2 * 4 + token // 8 % 2 * 2 + token % 2


def pack(codes: Tensor) -> Tensor:
    """int8 codes -7..7 [..., rows, columns] -> uint8 [..., rows * columns / 2]."""
    *lead, rows, columns = codes.shape
    units = codes.reshape(*lead, rows, columns // 32, 2, 4, 4).to(torch.int16)
    first, second = units.unbind(-3)  # [..., rows, columns / 32, 4 words, 4 bytes]
    sign_of_second_before = (second.roll(1, -1) < 0).short() << 3
    low = first.abs() | (first < 0).short() << 7
    data = low | second.abs() << 4 | sign_of_second_before
    return data.to(torch.uint8).flatten(-2).transpose(-3, -2).reshape(*lead, -1)


def unpack(data: Tensor, rows: int) -> Tensor:
    """uint8 [..., rows * columns / 2] -> int8 codes [..., rows, columns]."""
    lead, columns = data.shape[:-1], data.shape[-1] * 2 // rows
    units = data.reshape(*lead, columns // 32, rows, 4, 4).transpose(-4, -3).to(torch.int16)
    first, second = units & 7, units >> 4 & 7
    first = torch.where(units >> 7 != 0, -first, first)
    second = torch.where((units >> 3 & 1).roll(-1, -1) != 0, -second, second)
    return torch.stack((first, second), dim=-3).reshape(*lead, rows, columns).to(torch.int8)
