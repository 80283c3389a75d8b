"""The quantiser and the group sums in the simulator: values, and no finding."""

from __future__ import annotations

import numpy as np
import pytest

from quantize_problems import (
    FusedCase,
    group_sums,
    group_sums_reference,
    quantize,
    quantize_reference,
)
from sim_problems import from_bf16, to_bf16


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("k", [1, 7, 8, 100, 2056, 4100])
def test_quantizer_matches_the_definition(dtype, k):
    rng = np.random.default_rng(k)
    values = (rng.standard_normal((3, k + 3)) * 2.0 ** rng.integers(-9, 3, (3, k + 3))).astype("f4")
    values[1] = 0
    storage = to_bf16(values) if dtype is np.uint16 else values.astype(dtype)
    x = storage[:, :k]  # rows that are not contiguous
    codes, scale, findings = quantize(x, seed=k)
    assert findings == []
    exact = from_bf16(x) if dtype is np.uint16 else x
    expected_codes, expected_scale = quantize_reference(exact.astype(np.float32))
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(codes, expected_codes)


def test_quantizer_marks_rows_with_nan():
    x = np.ones((2, 40), np.float32)
    x[1, 33] = np.nan
    codes, scale, findings = quantize(x)
    assert findings == []
    assert np.all(codes[0] == 0x7E)
    assert np.isnan(scale[1])
    assert np.all(codes[1] & 127 == 127)


@pytest.mark.parametrize("group_log2", [5, 6, 7])
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (4, 96), (7, 1024), (9, 1184)])
def test_group_sums_match_the_definition(rows, k, group_log2):
    rng = np.random.default_rng(k + group_log2)
    wide = rng.integers(0, 127, (rows, k + 16), np.uint8) | rng.choice([0, 128], (rows, 1))
    codes = wide.astype(np.uint8)[:, :k]  # rows that lie apart; large sums of one sign
    sums, findings = group_sums(codes, group_log2, seed=k)
    assert findings == []
    np.testing.assert_array_equal(sums, group_sums_reference(codes, group_log2))


def test_group_sums_of_nan():
    codes = np.full((3, 128), 0x38, np.uint8)
    codes[1, 40] = 0x7F
    sums, findings = group_sums(codes, 5)
    assert findings == []
    np.testing.assert_array_equal(np.isnan(sums), [[0, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4])
    assert np.all(sums[:, [0, 2]] == 32)


def draw(rng, dtype, *shape):
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(
        -4, 4, (shape[0],) + (1,) * (len(shape) - 1)
    )
    return to_bf16(values) if dtype is np.uint16 else values.astype(dtype)


def check(case):
    expected = case.expected()
    got, findings = case.simulate(expected)
    assert findings == []
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# A warp, 2, 8 and 16 of them a row; whole runs of eight columns or not.
COLUMNS = (8, 100, 1024, 1056, 4128, 9000)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("k", COLUMNS)
def test_rms_norm_gives_the_bits_of_the_cpu(dtype, k):
    rng = np.random.default_rng(k)
    rows = 3 if k > 4000 else 9
    x, residual = draw(rng, dtype, rows, k + 8)[:, :k], draw(rng, dtype, rows, k)
    weight = draw(rng, dtype if k % 16 else np.float32, k)
    sums_group = 32 if k % 32 == 0 else None
    check(FusedCase(x, {"seed": k}, weight, residual if k != 1024 else None, None, sums_group))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("k", COLUMNS)
def test_silu_mul_gives_the_bits_of_the_cpu(dtype, k, interleaved):
    rng = np.random.default_rng(k)
    x = draw(rng, dtype, 3 if k > 4000 else 9, 2 * k + 8)[:, : 2 * k]
    sums_group = 64 if k % 64 == 0 else None
    case = FusedCase(x, {"seed": k}, interleaved=interleaved, sums_group=sums_group)
    check(case)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("rows", "k"), [(1, 64), (5, 384), (6, 2176)])
def test_quantizer_makes_sums(rows, k, group):
    """Also the zeros of the padding, where eight or four rows share a CTA and where one has it."""
    x = draw(np.random.default_rng(k), np.uint16, rows, k)
    check(FusedCase(x, {"seed": k}, sums_group=group if k % group == 0 else k))


@pytest.mark.parametrize("kind", ["plain", "norm", "silu"])
def test_rows_too_long_for_shared_memory_are_read_again(kind):
    rng = np.random.default_rng(1)
    k = 59_392  # 232 KB of float32
    x = draw(rng, np.float32, 1, 2 * k if kind == "silu" else k)
    weight = draw(rng, np.float32, k) if kind == "norm" else None
    interleaved = False if kind == "silu" else None
    check(FusedCase(x, {"seed": 1}, weight, None, interleaved, 128))


def test_norm_of_a_row_of_zeros_without_eps():
    x = np.zeros((2, 36), np.float32)
    x[1] = 1e-30  # its squares are 0, its values Inf
    case = FusedCase(x, {}, np.ones(36, np.float32), eps=0.0)
    (codes, scale), findings = case.simulate(case.expected())
    assert findings == []
    assert np.isnan(scale[0])
    assert scale[1] == np.inf
    assert np.all(codes & 127 == 127)
