"""The number formats of include/wlib/numerics, value by value, against their definition."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wlib_probe

Float64 = npt.NDArray[np.float64]
CODES = np.arange(256, dtype=np.uint8)


def e4m3_definition() -> Float64:
    """Value of every code: 4 exponent bits with bias 7, 3 fraction bits, NaN at the top."""
    exponent, fraction = CODES >> 3 & 15, CODES & 7
    normal = (1 + fraction / 8) * 2.0 ** (exponent.astype(int) - 7)
    magnitude = np.where(exponent > 0, normal, fraction / 8 * 2.0**-6)
    magnitude = np.where(CODES & 0x7F == 0x7F, np.nan, magnitude)
    return np.where(CODES & 0x80, -magnitude, magnitude)


VALUES = e4m3_definition()
GRID = VALUES[:0x7F]  # non-negative and finite, ascending
MIDDLES = (GRID[1:] + GRID[:-1]) / 2


def nearest_code(x: Float64) -> npt.NDArray[np.uint8]:
    """Nearest finite code, ties to even; NaN stays NaN."""
    magnitude = np.abs(x)
    code = np.searchsorted(MIDDLES, magnitude)  # of a middle: the lower neighbour
    tie = np.isin(magnitude, MIDDLES)
    code = np.where(tie & (code % 2 == 1), code + 1, code)
    code = np.where(np.isnan(x), 0x7F, code)
    return (code | np.signbit(x) << 7).astype(np.uint8)


def every_16_bit_float() -> dict[str, torch.Tensor]:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    return {"float16": bits.view(torch.float16), "bfloat16": bits.view(torch.bfloat16)}


def neighbourhoods() -> npt.NDArray[np.float32]:
    """All values and middles of E4M3, and the floats on either side of each."""
    points = np.concatenate([GRID, MIDDLES, [464, 480, 1e30, np.inf, 2.0**-126]])
    around = points.astype(np.float32)
    below, above = np.nextafter(around, np.float32(-1)), np.nextafter(around, np.float32(np.inf))
    positive = np.concatenate([around, below, above])
    return np.concatenate([positive, -positive])


def bits(x: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    return np.asarray(x, np.float32).view(np.uint32)


def test_quotient_rounds_like_the_division() -> None:
    rng = np.random.default_rng(0)
    for divisor in (1.0, 1.5, 1e-38, 3e-44, 1e35, *2.0 ** rng.uniform(-140, 110, 40)):
        d = float(np.float32(divisor))
        quotient = 2.0 ** rng.integers(-40, 9, 2**18) * rng.uniform(1, 1.75, 2**18)
        # Also numbers whose quotients lie next to the middle of two floats.
        quotient[::2] = quotient[::2].astype(np.float32) * (1 + 2.0**-24 * rng.choice([-1, 1]))
        x = (np.concatenate([quotient, -quotient, [0.0, -0.0, 448]]) * d).astype(np.float32)
        expected = x / np.float32(d)
        got = wlib_probe.quotient(x, np.float32(d))
        assert np.array_equal(bits(got), bits(expected))


def bits_to_float(bits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(bits).astype(np.uint32).view(np.float32)


def test_quotient_of_infinity_and_nan() -> None:
    x = np.array([1, -1, 0, np.inf, -np.inf, np.nan], np.float32)
    got = wlib_probe.quotient(x, np.float32(np.inf))
    assert np.array_equal(bits(got[:3]), bits(np.array([0.0, -0.0, 0.0])))
    assert np.isnan(got[3:]).all()
    assert np.isnan(wlib_probe.quotient(x, np.float32(np.nan))).all()


def test_division_by_an_approximate_reciprocal_rounds_like_the_division() -> None:
    rng = np.random.default_rng(2)
    size = 2**21
    d = bits_to_float(rng.integers(0x3F800000, 0x3F800000 + (116 << 23), size))
    x = bits_to_float(rng.integers(0x30000000, 0x42A00000, size)) * rng.choice([-1, 1], size)
    x = x.astype(np.float32)
    reciprocal = 1 / d
    for off in (-1, 0, 1):  # the instruction is off by one in the last place at most
        approximate = bits_to_float(bits(reciprocal) + np.uint32(off % 2**32))
        got = wlib_probe.divide_by_reciprocal(x, d, approximate)
        fair = np.abs(x / d) > 2.0**-100  # below, so small that silu does not care
        assert np.array_equal(bits(got[fair]), bits((x / d)[fair]))


def test_exp() -> None:
    x = np.linspace(-80, 80, 2**21).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(wlib_probe.exp_between_80(x) - exact) / exact
    assert error.max() < 2.0**-22
    assert error.max() > 2.0**-24


def test_e4m3_to_float() -> None:
    got = wlib_probe.e4m3_to_float(CODES)
    numbers = ~np.isnan(VALUES)
    assert np.array_equal(bits(got)[numbers], bits(VALUES)[numbers])  # -0 included
    assert np.array_equal(np.isnan(got), ~numbers)
    torchs = torch.from_numpy(CODES).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(bits(got)[numbers], bits(torchs)[numbers])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float_to_e4m3_of_every_16_bit_float(dtype: str) -> None:
    x = every_16_bit_float()[dtype].float()
    got = wlib_probe.float_to_e4m3(x.numpy())
    assert np.array_equal(got, nearest_code(x.double().numpy()))
    # torch's cast does the same, apart from overflow, which it turns into NaN.
    torchs = x.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    overflow = x.abs().numpy() > 464
    assert np.array_equal(got[~overflow], torchs[~overflow])
    assert set(got[overflow & ~np.isnan(x.numpy())]) == {0x7E, 0xFE}


def test_float_to_e4m3_around_every_value_and_every_middle() -> None:
    x = neighbourhoods()
    assert np.array_equal(wlib_probe.float_to_e4m3(x), nearest_code(x.astype(np.float64)))


def test_the_definition_breaks_ties_to_even() -> None:
    # 2^-10 lies between 0 and 2^-9; 1.0625 between 1 (0x38) and 1.125 (0x39); 1.1875 above that.
    ties = np.array([2.0**-10, 3 * 2.0**-10, 1.0625, 1.1875, -1.0625, 460, np.inf, np.nan, -0.0])
    expected = [0, 2, 0x38, 0x3A, 0xB8, 0x7E, 0x7E, 0x7F, 0x80]
    assert nearest_code(ties).tolist() == expected


def test_odd_code_of_every_pair() -> None:
    pairs = list(itertools.product(range(-8, 8), repeat=2))
    packed = [wlib_probe.odd_encode_pair(a, b) for a, b in pairs]
    assert sorted(packed) == list(range(256))
    for (a, b), byte in zip(pairs, packed, strict=True):
        assert wlib_probe.odd_decode_pair(byte) == (2 * a + 1, 2 * b + 1)
        # What the decode kernel makes of the byte by logic alone are E4M3 numbers in units of 2^-9.
        assert VALUES[byte & 0x8E | 1] * 2**9 == 2 * a + 1
        assert VALUES[byte << 7 & 0x80 | byte >> 3 & 0x0E | 1] * 2**9 == 2 * b + 1
