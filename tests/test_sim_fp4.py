"""The quantiser of FP4 in the simulator: the CPU's bits for every argument, no finding.

Tensor cores add in their own order, so where they rotate this is so for what is drawn here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fp4_problems import (
    RULES,
    HadamardCase,
    QuantizeCase,
    draw,
    packed,
    random_signs,
    several_strips,
)
from quantize_problems import as_torch
from sim_numbers import to_bf16
from sim_problems import probe

MX_RULES, NV_RULES = RULES[:5], RULES[5:]
DTYPES = (np.float32, np.float16, np.uint16)
NV = {"format": "nvfp4", "scale_rule": "amax"}
TIMINGS = ("random", "lazy", "eager")


def rotation(rng: np.random.Generator, size: int, signs: bool = True) -> dict[str, Any]:
    return {"hadamard": size, "signs": random_signs(rng, size) if size and signs else None}


@pytest.mark.parametrize("size", [0, 16, 32, 64, 128])
@pytest.mark.parametrize("rule", ["even", "amax"])
def test_rotations(rule: str, size: int) -> None:
    rng = np.random.default_rng(size)
    format = "mxfp4" if rule in MX_RULES else "nvfp4"
    arguments = {"format": format, "scale_rule": rule, **rotation(rng, size), "mask": True}
    x = draw(rng, np.uint16, 37, 256, spread=6)
    assert QuantizeCase([x], arguments, {"seed": size, "timing": "lazy"}).run() == ([], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_and_types(rule: str, dtype: type) -> None:
    rng = np.random.default_rng(RULES.index(rule))
    format = "mxfp4" if rule in MX_RULES else "nvfp4"
    arguments = {"format": format, "scale_rule": rule, "mask": True, **rotation(rng, 32, False)}
    x = draw(rng, dtype, 33, 96, spread=6)
    assert QuantizeCase([x], arguments, {"seed": 1}).run() == ([], True)


ROUNDINGS = {
    "stochastic mxfp4": {"scale_rule": "three_quarters", "rounding": "stochastic"},
    "stochastic nvfp4": {**NV, "rounding": "stochastic"},
    "ms_eden": {**NV, "rounding": "ms_eden"},
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("seed", [[7], [-(2**40), 3]], ids=["seed", "seed and step"])
def test_random_roundings(rounding: str, seed: list[int]) -> None:
    rng = np.random.default_rng(4)
    value = np.array(seed, np.int64) if len(seed) == 2 else np.array(seed[0], np.int64)
    arguments = {**ROUNDINGS[rounding], **rotation(rng, 64), "seed": value, "offset": 5}
    x = draw(rng, np.uint16, 192, 64, spread=3)
    assert QuantizeCase([x], arguments, {"seed": 2}, axis="both").run() == ([], True)


@pytest.mark.parametrize("spread", [4, 40])
@pytest.mark.parametrize("carrier", ["e4m3", "e5m2"])
@pytest.mark.parametrize("axis", ["rows", "columns", "both"])
def test_carriers_and_windows(carrier: str, axis: str, spread: int) -> None:
    """Scales of a row within the window, and far below it."""
    rng = np.random.default_rng(5)
    x = draw(rng, np.float32, 160, 192, spread=spread)
    x[32:64, 64:96] = 0
    x[:, 7] = 0
    x[3] = 0
    for seed, arguments in enumerate(
        ({"carrier": carrier}, {"carrier": carrier, "packed": False, "window": 6}, {"window": 9})
    ):
        options = {"seed": seed, "timing": TIMINGS[seed]}
        assert QuantizeCase([x], arguments, options, axis).run() == ([], True)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("shape", [(1, 32), (130, 224), (128, 128), (256, 160)])
def test_swizzled_scales_and_shapes(format: str, shape: tuple[int, int]) -> None:
    """Both sides where the rows are a multiple of a block."""
    rng = np.random.default_rng(shape[0])
    arguments = {"format": format, "scale_rule": "even" if format == "mxfp4" else "amax",
                 "swizzle": True, "mask": True}  # fmt: skip
    axis = "both" if shape[0] % 32 == 0 else "rows"
    case = QuantizeCase([draw(rng, np.float16, *shape, spread=3)], arguments, {"seed": 3}, axis)
    assert case.run() == ([], True)


@pytest.mark.parametrize("columns", [1, 35, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_any_number_of_rows_of_any_width(columns: int, dtype: type) -> None:
    rng = np.random.default_rng(columns)
    arguments = {**NV, **rotation(rng, 16), "swizzle": True}
    case = QuantizeCase([draw(rng, dtype, 144, columns)], arguments, {"seed": 4}, "columns")
    assert case.run() == ([], True)


def test_a_given_global_scale() -> None:
    rng = np.random.default_rng(6)
    scale = np.array(0.003, np.float32)
    x = draw(rng, np.float32, 32, 64)
    assert QuantizeCase([x], {**NV, "global_scale": scale}, {}).run() == ([], True)
    zero = np.zeros((), np.float32)
    assert QuantizeCase([x], {**NV, "global_scale": zero}, {}).run() == ([], True)


@pytest.mark.parametrize("axis", ["rows", "columns", "both"])
def test_square_blocks(axis: str) -> None:
    rng = np.random.default_rng(7)
    arguments = {**NV, "square": True, "mask": True}
    x = draw(rng, np.uint16, 144, 160, spread=4)
    assert QuantizeCase([x], arguments, {"seed": 5}, axis).run() == ([], True)


@pytest.mark.parametrize("what", ["zeros", "nan", "inf", "tiny", "huge"])
@pytest.mark.parametrize("rule", ["even", "quest", "four_over_six", "ms_eden", "stochastic"])
def test_special_values(what: str, rule: str) -> None:
    rng = np.random.default_rng(8)
    x = draw(rng, np.float32, 5, 128)
    if what in ("nan", "inf"):
        x[3, 40] = np.float32(what)
    else:
        x[3] *= {"zeros": -0.0, "tiny": 1e-42, "huge": 1e38}[what]
    arguments: dict[str, Any] = {
        "ms_eden": {**NV, "rounding": "ms_eden", "seed": np.array(1)},
        "stochastic": {"carrier": "e4m3", "rounding": "stochastic", "seed": np.array(1)},
        "four_over_six": {"format": "nvfp4", "scale_rule": rule},
    }.get(rule, {"scale_rule": rule, "carrier": "e5m2"})
    assert QuantizeCase([x], {**arguments, "mask": True}, {}).run() == ([], True)


@pytest.mark.parametrize("window", [1, 2, 8, 15])
def test_a_block_at_either_side_of_the_window(window: int) -> None:
    """A tile is quantised again for a block just below, and not for one within or of zeros."""
    x = draw(np.random.default_rng(12), np.uint16, 96, 256)
    values = as_torch(x)
    values[40, 160:192] *= 2.0 ** -(window + 3)
    values[70, 32:64] = 0
    for rows in (slice(0, 32), slice(32, 64), slice(64, 96)):
        case = QuantizeCase([x[rows]], {"carrier": "e4m3", "window": window}, {"seed": window})
        assert case.run() == ([], True)


@pytest.mark.parametrize("arguments", [{}, {"swizzle": True}], ids=str)
@pytest.mark.parametrize("shape", [(128, 640), (64, 608)])
@pytest.mark.parametrize("axis", ["rows", "both"])
def test_rows_of_several_strips(
    arguments: dict[str, Any], shape: tuple[int, int], axis: str
) -> None:
    """More tiles than a CTA folds at a time, of which some are quantised again."""
    rng = np.random.default_rng(shape[0])
    x = several_strips(rng, *shape)
    arguments = {"carrier": "e4m3", "hadamard": 32, **arguments}
    assert QuantizeCase([x], arguments, {"seed": 6}, axis).run() == ([], True)


PLAIN = {
    "codes": {},
    "e4m3": {"carrier": "e4m3"},
    "e5m2 alone": {"carrier": "e5m2", "packed": False},
    "window": {"carrier": "e4m3", "window": 2},
}
# One of these each, and the kernels for everything serve.
NOT_PLAIN = {
    "mask": {"mask": True},
    "swizzled": {"swizzle": True, "carrier": "e4m3"},
    "rule": {"scale_rule": "floor"},
    "rounding": {"scale_rule": "three_quarters", "rounding": "stochastic", "seed": np.array(1)},
    "small rotation": {"hadamard": 16, "signs": None},
}


@pytest.mark.parametrize("what", PLAIN | NOT_PLAIN)
@pytest.mark.parametrize("size", [32, 128])
def test_whole_tiles(what: str, size: int) -> None:
    """Where the plain kernels serve, and where next to nothing keeps them from it."""
    rng = np.random.default_rng(size)
    arguments = {**rotation(rng, size), **(PLAIN | NOT_PLAIN)[what]}
    x = draw(rng, np.uint16, 128, 256, spread=3)
    as_torch(x)[5, 130] = torch.nan
    x[:, 64:96] = 0
    options = {"seed": size, "timing": TIMINGS[size % 3]}
    for axis in ("rows", "both"):
        assert QuantizeCase([x], arguments, options, axis).run() == ([], True)
    for scale in (1, 64):
        source = packed(rng, 128, 128, scale=scale)
        assert QuantizeCase(source, arguments, options, "columns").run() == ([], True)


def test_whole_tiles_that_are_not_aligned() -> None:
    rng = np.random.default_rng(14)
    arguments = rotation(rng, 32)
    wide = draw(rng, np.uint16, 128, 132)
    assert QuantizeCase([wide[:, 4:132]], arguments, {}).run() == ([], True)
    assert QuantizeCase([wide[:, :128]], arguments, {}).run() == ([], True)
    codes, scales, _ = packed(rng, 128, 128)
    shifted = np.concatenate(([0], codes.ravel())).astype(np.uint8)[1:].reshape(codes.shape)
    assert shifted.ctypes.data % 8
    assert QuantizeCase([shifted, scales, None], arguments, {}, "columns").run() == ([], True)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("value", [np.nan, np.inf, 6e4])
def test_rotations_of_special_values(value: float, size: int, dtype: type) -> None:
    """What is not finite spreads to its rotated block, and no further."""
    rng = np.random.default_rng(size)
    x = draw(rng, dtype, 64, 256, spread=2)
    for row, column in ((3, 5), (17, 200)):
        as_torch(x)[row, column] = value
    arguments = {"carrier": "e5m2", **rotation(rng, size)}
    axis = "rows" if size == 128 else "both"
    assert QuantizeCase([x], arguments, {"seed": size}, axis).run() == ([], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 128])
def test_rotated_zeros_are_positive(size: int, dtype: type) -> None:
    x = np.full((16, 128), -0.0, np.float32)
    case = QuantizeCase(
        [to_bf16(x) if dtype is np.uint16 else x.astype(dtype)], {"hadamard": size}, {}
    )
    assert not case.expected()[0].any()
    assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", [*DTYPES[1:], "packed"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_tensor_cores_move_few_codes(size: int, dtype: Any) -> None:
    """They add in another order than the butterfly: a value next to a tie may go the other way."""
    rng = np.random.default_rng(size)
    signs = rotation(rng, size)
    source = packed(rng, 512, 256) if dtype == "packed" else [draw(rng, dtype, 512, 256, spread=4)]
    case = QuantizeCase(source, signs, {"seed": size}, "columns")
    expected = case.expected()
    got, findings = case.simulate(expected)
    assert findings == []
    assert np.array_equal(got[1], expected[1])  # scales: the largest values lie by no tie
    codes, reference = (np.stack([a[0] & 15, a[0] >> 4]).astype(int) for a in (got, expected))
    moved = codes != reference
    assert moved.mean() <= 1e-4
    place = [np.where(c < 8, c, 8 - c) for c in (codes, reference)]  # -7 .. 7
    assert np.abs(place[0] - place[1]).max() <= 1


@pytest.mark.parametrize("scale", [2.0**-120, 1.0, 64.0, 2.0**120])
def test_packed_scales_of_any_size(scale: float) -> None:
    rng = np.random.default_rng(13)
    for arguments in ({}, rotation(rng, 64)):
        source = packed(rng, 64, 96, scale=scale)
        assert QuantizeCase(source, arguments, {"seed": 1}, "columns").run() == ([], True)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(
    "arguments", [{"carrier": "e4m3"}, {"mask": True}, {"scale_rule": "floor"}], ids=str
)
def test_what_the_largest_scale_is_too_small_for(dtype: type, arguments: dict[str, Any]) -> None:
    rng = np.random.default_rng(15)
    values = (rng.uniform(0.8, 0.998, (16, 64)) * 2.0**128).astype(np.float32)
    values[::2] *= -1
    x = to_bf16(values) if dtype is np.uint16 else values
    case = QuantizeCase([x], arguments, {})
    assert (case.expected()[0] & 7 == 7).any()
    assert case.run() == ([], True)


@pytest.mark.parametrize("old", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("new", ["carrier", "stochastic", "ms_eden"])
def test_requantised_transpose(old: str, new: str) -> None:
    rng = np.random.default_rng(9)
    arguments: dict[str, Any] = {
        "carrier": {"carrier": "e4m3"},
        "stochastic": {"scale_rule": "three_quarters", "rounding": "stochastic",
                       "seed": np.array([3, 4])},
        "ms_eden": {**NV, "rounding": "ms_eden", "seed": np.array(3)},
    }[new]  # fmt: skip
    case = QuantizeCase(packed(rng, 128, 160, old), {**arguments, **rotation(rng, 128)},
                        {"seed": 6}, "columns")  # fmt: skip
    assert case.run() == ([], True)


def test_operands_that_are_not_aligned() -> None:
    rng = np.random.default_rng(10)
    wide = draw(rng, np.uint16, 37, 67)
    assert QuantizeCase([wide[:, 1:65]], {}, {}).run() == ([], True)
    assert QuantizeCase([draw(rng, np.uint16, 37, 72)[:, 8:72]], {}, {}).run() == ([], True)
    codes, scales, _ = packed(rng, 32, 64)
    shifted = np.concatenate(([0], codes.ravel())).astype(np.uint8)[1:].reshape(codes.shape)
    assert shifted.ctypes.data % 8
    assert QuantizeCase([shifted, scales, None], {}, {}, "columns").run() == ([], True)


def test_the_order_of_threads_changes_nothing() -> None:
    rng = np.random.default_rng(11)
    x = draw(rng, np.uint16, 64, 128, spread=20)
    arguments = {"carrier": "e4m3", **rotation(rng, 64), "swizzle": True}
    for seed in range(4):
        options = {"seed": seed, "timing": TIMINGS[seed % 3], "preempt_every": 40 * seed}
        assert QuantizeCase([x], arguments, options, "both").run() == ([], True)


def test_empty_matrices() -> None:
    for shape in ((0, 64), (5, 0)):
        x = np.zeros(shape, np.float32)
        for arguments in ({"carrier": "e4m3"}, NV):
            assert QuantizeCase([x], arguments, {}).run() == ([], True)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard(size: int, dtype: type, inverse: bool) -> None:
    rng = np.random.default_rng(size)
    signs = random_signs(rng, size)
    x = draw(rng, dtype, 9, size + 3)[:, 1 : 1 + size] if size < 64 else draw(rng, dtype, 9, 128)
    assert HadamardCase(x, size, {"seed": size}, signs, inverse).run() == ([], True)
    assert HadamardCase(draw(rng, dtype, 130, 256), size, {}).run() == ([], True)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("seed", [np.array(-5), np.array([2**50, 77])], ids=["seed", "step"])
def test_signs(size: int, seed: Any) -> None:
    out = np.zeros(size, np.int8)
    report = probe.fp4_signs(seed, out, 12, probe.Options(seed=size))
    assert report.findings == []
    expected = torch.ops.wlib.fp4_signs(torch.from_numpy(seed), size, offset=12)
    assert np.array_equal(out, expected.numpy())
