"""The packed INT4 layout, version 1: fragment-ordered tiles of 64 rows by 128 columns.

`include/wlib/layout/int4_tile.h` states the same layout for the kernels. A row block holds the
tiles of 64 rows in column order and then the 64 float32 channel scales; it is contiguous, so that
one bulk copy brings a tile with the scales it needs. A tile is

    codes        [2 halves][128 threads][16] uint8    two codes per byte, in the order a warpgroup
                                                      feeds them to wgmma as its register operand
    scales       [P][32 pairs][2] bfloat16            P scale groups per tile
    zero points  [P][32 pairs][2] float32             only if the weight has zero points

A byte joins rows r and r + 8 of a 16-row slab in odd code, sign_a | mag_b | mag_a | sign_b, where
mag = q for q >= 0 and -q - 1 below: 2 mag + 1 is |2q + 1|, so that setting one bit turns a nibble
into the exact E4M3 value (2q + 1) 2^-9 without any conversion, -8 included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import refuse

LAYOUT_VERSION = 1
TILE_N = 64
TILE_K = 128
_CODE_BYTES = TILE_N * TILE_K // 2
_CHANNEL_BYTES = TILE_N * 4


def check_group_size(where: str, k: int, group_size: int) -> None:
    """Raise ValueError unless rows of k weights can be cut into groups of group_size."""
    size_exists = group_size in (32, 64, k) or (group_size > 0 and group_size % TILE_K == 0)
    if not size_exists or k <= 0 or k % group_size or k % 32:
        expected = "group_size of 32, 64, a multiple of 128 or k itself, dividing"
        refuse(where, f"{expected} k={k} (a multiple of 32)", group_size, "group_size")


def tile_groups(k: int, group_size: int) -> int:
    """Scale groups in a tile of 128 columns; a group of 128 or more, or of all k, is one."""
    return 1 if group_size % TILE_K == 0 or group_size == k else TILE_K // group_size


def tile_bytes(k: int, group_size: int, has_zero_point: bool) -> int:
    """Bytes of one tile: codes, BF16 scales and, if there are any, float32 zero points."""
    return _CODE_BYTES + TILE_N * tile_groups(k, group_size) * (6 if has_zero_point else 2)


def packed_shape(n: int, k: int, group_size: int, has_zero_point: bool) -> tuple[int, int]:
    """Shape [row blocks, bytes per row block] of the packed data of an [n, k] weight."""
    tiles = -(-k // TILE_K)
    return -(-n // TILE_N), tiles * tile_bytes(k, group_size, has_zero_point) + _CHANNEL_BYTES


def _pack_codes(codes: Tensor, blocks: int, tiles: int) -> Tensor:
    """[N, K/2] uint8 nibbles -> [blocks, tiles, 4096] uint8 in fragment order and odd code."""
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)  # [N, K]
    nibbles = pad(nibbles, (0, tiles * TILE_K - nibbles.shape[1], 0, blocks * TILE_N - len(codes)))
    sign = nibbles >> 3
    odd = (nibbles ^ (sign * 15)) << 1 | sign  # mag at bits 3..1, sign at bit 0
    # row = block, warp, a/b, lane / 4; column = tile, half, step, word, lane % 4, byte
    a, b = odd.view(blocks, 4, 2, 8, tiles, 2, 2, 2, 4, 4).unbind(2)
    pairs = (a & 1) << 7 | (b & 14) << 3 | (a & 14) | (b & 1)
    return pairs.permute(0, 3, 4, 1, 2, 7, 5, 6, 8).reshape(blocks, tiles, _CODE_BYTES)


def _unpack_codes(packed: Tensor) -> Tensor:
    """The inverse of _pack_codes, padding included: -> [blocks * 64, tiles * 64] uint8."""
    blocks, tiles, _ = packed.shape
    pairs = packed.reshape(blocks, tiles, 2, 4, 8, 4, 2, 2, 4).permute(0, 3, 4, 1, 2, 6, 7, 5, 8)
    sign = torch.stack((pairs >> 7, pairs & 1), dim=2)
    mag = torch.stack((pairs >> 1 & 7, pairs >> 4 & 7), dim=2)
    nibbles = (mag ^ (sign * 15)).reshape(blocks * TILE_N, tiles * TILE_K)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def _pack_groups(values: Tensor, blocks: int, tiles: int, k: int, group_size: int) -> Tensor:
    """[N, K/G] values, one per row and group -> [blocks, tiles, bytes] uint8 in pair order."""
    per_tile = tile_groups(k, group_size)
    columns = torch.arange(tiles * per_tile, device=values.device) * (TILE_K // per_tile)
    padded = pad(values, (0, 1, 0, blocks * TILE_N - len(values)))  # a last column of zeros
    group = torch.where(columns < k, columns // group_size, values.shape[1])
    # row = block, slab, h, row in slab; pairs are (slab, row in slab), h comes last
    tile = padded[:, group].view(blocks, 4, 2, 8, tiles, per_tile).permute(0, 4, 5, 1, 3, 2)
    return tile.contiguous().view(torch.uint8).view(blocks, tiles, -1)


def _unpack_groups(packed: Tensor, dtype: torch.dtype, k: int, group_size: int) -> Tensor:
    """The inverse of _pack_groups, padded rows included: -> [blocks * 64, K/G] of `dtype`."""
    blocks, tiles, _ = packed.shape
    per_tile = tile_groups(k, group_size)
    tile = packed.contiguous().view(dtype).view(blocks, tiles, per_tile, 4, 8, 2)
    values = tile.permute(0, 3, 5, 4, 1, 2).reshape(blocks * TILE_N, tiles * per_tile)
    return values[:, :: max(1, group_size // TILE_K)][:, : k // group_size]


def pack(
    codes: Tensor, group_scale: Tensor, zero_point: Tensor | None, channel_scale: Tensor | None
) -> Tensor:
    """Pack checked tensors, as `Int4Weight` holds them, into [row blocks, bytes] uint8.

    Rows are padded to 64 and columns to 128 with code 0 and with zero scales and zero points;
    channel scales are 1 where the weight has none.
    """
    n, k = codes.shape[0], codes.shape[1] * 2
    group_size = k // group_scale.shape[1]
    blocks, tiles = -(-n // TILE_N), -(-k // TILE_K)
    # Bit views, so that no NaN payload or signed zero changes on the way.
    parts = [
        _pack_codes(codes, blocks, tiles),
        _pack_groups(group_scale.view(torch.int16), blocks, tiles, k, group_size),
    ]
    if zero_point is not None:
        parts.append(_pack_groups(zero_point.view(torch.int32), blocks, tiles, k, group_size))
    if channel_scale is None:
        channel_scale = torch.ones(n, device=codes.device)
    channel = pad(channel_scale, (0, blocks * TILE_N - n)).view(blocks, TILE_N).view(torch.uint8)
    return torch.cat((torch.cat(parts, dim=2).flatten(1), channel), dim=1)


def unpack(
    data: Tensor, n: int, k: int, group_size: int, has_zero_point: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Exact inverse of `pack`: codes, group scales, zero points and channel scales."""
    body, channel = data[:, :-_CHANNEL_BYTES], data[:, -_CHANNEL_BYTES:]
    tile = body.view(len(data), -1, tile_bytes(k, group_size, has_zero_point))
    scale_end = _CODE_BYTES + 2 * TILE_N * tile_groups(k, group_size)
    codes = _unpack_codes(tile[..., :_CODE_BYTES])[:n, : k // 2]
    scale = _unpack_groups(tile[..., _CODE_BYTES:scale_end], torch.bfloat16, k, group_size)[:n]
    zero_point = None
    if has_zero_point:
        zero_point = _unpack_groups(tile[..., scale_end:], torch.float32, k, group_size)[:n]
        zero_point = zero_point.contiguous()
    channel_scale = channel.contiguous().view(torch.float32).flatten()[:n].contiguous()
    return codes.contiguous(), scale.contiguous(), zero_point, channel_scale
