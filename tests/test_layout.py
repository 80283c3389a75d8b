"""The packed INT4 layout against CuTe's account of wgmma's registers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import wlib_probe

from wlib import layout

# (n, k, group size): rows and columns off the tile grid, every way a group can share a tile.
SHAPES = ((64, 128, 128), (1, 32, 32), (65, 160, 32), (70, 96, 96), (63, 192, 64), (130, 160, 160),
          (40, 512, 256), (128, 384, 384), (7, 320, 320))  # fmt: skip


def test_fragments_as_the_instruction_set_defines_them() -> None:
    for t, v in itertools.product(range(128), range(16)):
        row = t // 32 * 16 + t % 32 // 4 + v // 4 % 2 * 8
        column = t % 4 * 4 + v % 4 + v // 8 * 16
        assert wlib_probe.int4_fragment_place(t, v) == (row, column)


def test_each_code_of_a_tile_has_one_place() -> None:
    places = [wlib_probe.int4_code_position(byte) for byte in range(4096)]
    both = places + [(row + 8, column) for row, column in places]
    assert sorted(both) == list(itertools.product(range(64), range(128)))


def test_a_code_is_where_its_thread_feeds_it_to_wgmma() -> None:
    for byte in range(4096):
        half, t, step, word, j = np.unravel_index(byte, (2, 128, 2, 2, 4))
        row, column = wlib_probe.int4_code_position(byte)
        first = (half * 2 + step) * 32
        a = wlib_probe.int4_fragment_place(int(t), int(word * 8 + j))
        b = wlib_probe.int4_fragment_place(int(t), int(word * 8 + 4 + j))
        assert (a[0], first + a[1]) == (row, column)
        assert (b[0], first + b[1]) == (row + 8, column)


def test_each_row_of_a_tile_has_one_scale() -> None:
    assert sorted(wlib_probe.int4_scale_index(row) for row in range(64)) == list(range(64))
    for row in (r for r in range(64) if r % 16 < 8):  # a pair is one load
        assert wlib_probe.int4_scale_index(row) % 2 == 0
        assert wlib_probe.int4_scale_index(row + 8) == wlib_probe.int4_scale_index(row) + 1


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("n", "k", "group_size"), SHAPES)
def test_pack_equals_a_packer_built_on_cute(
    n: int, k: int, group_size: int, zero_points: bool
) -> None:
    rng = np.random.default_rng(n * k)
    groups = k // group_size
    codes = rng.integers(-8, 8, (n, k)).astype(np.int8)
    scale = rng.integers(0, 2**16, (n, groups)).astype(np.uint16)  # any bits, NaN included
    zero = rng.standard_normal((n, groups)).astype(np.float32) if zero_points else None
    channel = rng.standard_normal(n).astype(np.float32)
    nibbles = codes.astype(np.uint8) & 15
    got = layout.pack(
        torch.from_numpy(nibbles[:, 0::2] | nibbles[:, 1::2] << 4),
        torch.from_numpy(scale).view(torch.bfloat16),
        None if zero is None else torch.from_numpy(zero),
        torch.from_numpy(channel),
    )
    expected = wlib_probe.int4_pack(codes, scale, zero, channel, group_size)
    assert np.array_equal(got.numpy(), expected)


def test_sizes_are_those_of_the_header() -> None:
    for k, group_size in itertools.product(range(32, 1025, 32), (32, 64, 96, 128, 256, 384, 1024)):
        try:
            layout.check_group_size("test", k, group_size)
        except ValueError:
            assert wlib_probe.int4_groups_per_tile(group_size, k) == 0
            continue
        groups = layout.tile_groups(k, group_size)
        assert wlib_probe.int4_groups_per_tile(group_size, k) == groups
        for zeros in (False, True):
            _, row_bytes = layout.packed_shape(64, k, group_size, zeros)
            assert wlib_probe.int4_block_bytes(groups, zeros, -(-k // 128)) == row_bytes
