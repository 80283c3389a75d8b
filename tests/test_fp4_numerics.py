"""The FP4 number formats and scale rules of include/wlib/numerics against their definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wlib_probe

from wlib.reference import fp4 as reference

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MIDDLES = (GRID[1:] + GRID[:-1]) / 2
MX_RULES = ("even", "floor", "three_quarters", "quest", "quest_floor")


def every_16_bit_float() -> npt.NDArray[np.float32]:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    both = torch.cat((bits.view(torch.float16).float(), bits.view(torch.bfloat16).float()))
    return both[~both.isnan()].numpy()


def neighbourhoods() -> npt.NDArray[np.float32]:
    """All values and middles of E2M1, and the four floats on either side of each."""
    around = [np.concatenate([GRID, MIDDLES, [7, 1e30, 2.0**-126]]).astype(np.float32)]
    for target in (np.float32(-100), np.float32(np.inf)):
        points = around[0]
        for _ in range(4):
            points = np.nextafter(points, target)
            around.append(points)
    positive = np.abs(np.concatenate(around))
    return np.concatenate([positive, -positive])


def nearest(x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    codes: npt.NDArray[np.int64] = reference.nearest_code(torch.from_numpy(x).double()).numpy()
    return codes


def test_the_definition_breaks_ties_to_even() -> None:
    ties = np.array([*MIDDLES, *-MIDDLES, 6.5, np.inf, -0.0], np.float32)
    assert nearest(ties).tolist() == [
        *(0, 2, 2, 4, 4, 6, 6), *(8, 10, 10, 12, 12, 14, 14), 7, 7, 8]  # fmt: skip


def test_e2m1_to_float() -> None:
    got = wlib_probe.e2m1_to_float(np.arange(16, dtype=np.uint32))
    expected = np.concatenate([GRID, -GRID]).astype(np.float32)
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))  # -0 included


@pytest.mark.parametrize("x", [every_16_bit_float(), neighbourhoods()], ids=["16-bit", "near"])
def test_float_to_e2m1(x: npt.NDArray[np.float32]) -> None:
    assert np.array_equal(wlib_probe.float_to_e2m1(x), nearest(x))


@pytest.mark.parametrize("clamp", [True, False])
def test_eight_codes_at_once(clamp: bool) -> None:
    """What the kernels run: every value in every place, next to values of all magnitudes."""
    x = np.concatenate([every_16_bit_float(), neighbourhoods()])
    x = x[~np.isnan(x) if clamp else np.abs(x) < 7]
    x = np.random.default_rng(0).permutation(np.resize(x, -(-x.size // 8) * 8))
    expected = wlib_probe.float_to_e2m1(x).reshape(-1, 8).astype(np.uint32)
    for shift in range(8):
        eight = np.roll(x, shift).reshape(-1, 8)
        codes = np.roll(expected.reshape(-1), shift).reshape(-1, 8)
        words = wlib_probe.fp4_encode_eight(eight, clamp)
        assert np.array_equal(words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15, codes)


def test_stochastic_rounding_is_exact_for_every_threshold() -> None:
    """The code steps up where the random bits reach the distance to the next value."""
    steps = np.array([0.5, 0.5, 0.5, 0.5, 1, 1, 2])
    for low in range(7):
        for part in (0, 2.0**-20, 0.25, 0.5, 1 - 2.0**-20):
            x = np.float32(GRID[low] + part * steps[low])
            random = np.arange(0, 2**22, 3, dtype=np.uint32)
            random = np.concatenate([random, [2**22 - 1]]).astype(np.uint32)
            got = wlib_probe.float_to_e2m1_stochastic(np.full(random.shape, x), random)
            up = part * 2**22 + random >= 2**22
            assert np.array_equal(got, low + up)
            negative = wlib_probe.float_to_e2m1_stochastic(np.full(random.shape, -x), random)
            assert np.array_equal(negative, 8 + low + up)
    assert wlib_probe.float_to_e2m1_stochastic(np.float32(9), np.uint32(2**22 - 1)) == 7


def test_e8m0() -> None:
    codes = np.arange(255, dtype=np.uint32)
    assert np.array_equal(
        wlib_probe.e8m0_to_float(codes).astype(np.float64), 2.0 ** (codes - 127.0)
    )
    assert np.isnan(wlib_probe.e8m0_to_float(np.uint32(255)))
    torchs = torch.arange(255, dtype=torch.uint8).view(torch.float8_e8m0fnu).float().numpy()
    assert np.array_equal(wlib_probe.e8m0_to_float(codes), torchs)
    used = codes[:253]
    assert np.array_equal(
        wlib_probe.e8m0_reciprocal(used).astype(np.float64), 2.0 ** (127.0 - used)
    )


def test_e5m2_to_float() -> None:
    codes = np.arange(256, dtype=np.uint8)
    torchs = torch.from_numpy(codes).view(torch.float8_e5m2).float().numpy()
    got = wlib_probe.e5m2_to_float(codes)
    assert np.array_equal(np.isnan(got), np.isnan(torchs))
    numbers = ~np.isnan(torchs)
    assert np.array_equal(got.view(np.uint32)[numbers], torchs.view(np.uint32)[numbers])


@pytest.mark.parametrize(("e5m2", "least", "largest"), [(False, -8, 6), (True, -15, 13)])
def test_carriers_hold_every_value_of_the_window(e5m2: bool, least: int, largest: int) -> None:
    dtype = torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn
    for d in range(least, largest + 1):
        data = torch.tensor(wlib_probe.fp4_carrier_bytes(e5m2, d), dtype=torch.uint8)
        expected = np.concatenate([GRID, -GRID]) * 2.0**d
        got = data.view(dtype).double().numpy()
        assert np.array_equal(got, expected)
        assert np.array_equal(np.signbit(got), np.signbit(expected))


def test_row_scales_are_powers_of_two() -> None:
    biased = np.arange(-13, 247)
    got = wlib_probe.fp4_row_scale(biased).astype(np.float64)
    assert np.array_equal(got, 2.0 ** (biased - 127.0))


@pytest.mark.parametrize("rule", range(5), ids=MX_RULES)
def test_mx_scales_of_every_exponent(rule: int) -> None:
    """Gaussian blocks of every magnitude, and maxima on either side of each threshold."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((6000, 32)) * 2.0 ** rng.integers(-140, 127, (6000, 1))
    blocks = np.clip(blocks, -3e38, 3e38).astype(np.float32)
    edges = np.zeros((30, 32), np.float32)
    for i, top in enumerate((1.0, 1.5, 1.75, 1.9999999, 3.5, 6.0, 7.0, 1e-45, 2.0**-126, 3.4e38)):
        edges[3 * i : 3 * i + 3, 0] = [np.nextafter(np.float32(top), np.float32(0)), top, -top]
        edges[3 * i : 3 * i + 3, 1:] = np.float32(top) / 3
    blocks = np.concatenate([blocks, edges, np.zeros((1, 32), np.float32)])
    expected = reference.mx_exponent(torch.from_numpy(blocks).double(), MX_RULES[rule]) + 127
    got = wlib_probe.fp4_mx_scales(blocks, rule).astype(np.int64)
    differ = got != expected.numpy()
    if MX_RULES[rule].startswith("quest"):  # an irrational threshold, in float32
        sigma = blocks.astype(np.float64).std(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.log2(sigma * (2.92247856 / 6)) + (0.5 if rule == 3 else 0)
            near = np.abs(exact - np.rint(exact)) < 1e-5
        differ &= ~near
        assert near.sum() < 10
    assert not differ.any(), (got[differ], expected.numpy()[differ], blocks[differ][:, :2])


def test_mx_scale_of_nan_and_inf_is_nan() -> None:
    blocks = np.ones((3, 32), np.float32)
    blocks[[0, 1], [3, 31]] = [np.nan, -np.inf]
    for rule in range(5):
        assert wlib_probe.fp4_mx_scales(blocks, rule)[:2].tolist() == [255, 255]
        assert wlib_probe.fp4_mx_scales(blocks, rule)[2] != 255


def test_swizzled_scales_fill_whole_atoms() -> None:
    """The 128x4 order as it is documented for block-scaled MMAs."""
    rows, scales = 256, 12
    places = {}
    for r in range(rows):
        for k in range(scales):
            atom = (r // 128) * (scales // 4) + k // 4
            places[r, k] = atom * 512 + (r % 32) * 16 + (r // 32 % 4) * 4 + k % 4
            assert wlib_probe.fp4_swizzled_scale(r, k, scales) == places[r, k]
    assert sorted(places.values()) == list(range(rows * scales))
    assert wlib_probe.fp4_swizzled_scale(128, 0, 5) == 1024  # five scales take two atoms
