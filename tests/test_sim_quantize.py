"""The quantiser and the group sums in the simulator: values, and no finding."""

from __future__ import annotations

import numpy as np
import pytest

from quantize_problems import group_sums, group_sums_reference, quantize, quantize_reference
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
