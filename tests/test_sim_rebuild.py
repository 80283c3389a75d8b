"""The kernel of rebuilt weights in the simulator, against float64 and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wlib
from rebuild_problems import (
    OUT_TYPES,
    RebuildCase,
    as_float,
    as_type,
    draw_layer,
    rebuild,
    shapes,
    simulated,
    split_case,
    stochastic_case,
)
from sim_problems import from_bf16, to_bf16
from wlib.reference import rebuild as reference


@pytest.mark.parametrize("seed", range(12))
def test_exact_layers_match_bit_for_bit(seed: int) -> None:
    """Several layers of all forms, empty ones included, in few CTAs; tails everywhere."""
    rng = np.random.default_rng(seed)
    layers = [draw_layer(rng, int(form), OUT_TYPES[seed % 3]) for form in rng.permutation(4)]
    findings = simulated(layers, capacity=8, ctas=1 + seed % 3, seed=seed)
    assert findings == []
    for layer in layers:
        assert layer.is_exact()


def test_the_table_of_many_layers() -> None:
    rng = np.random.default_rng(1)
    layers = [draw_layer(rng, form % 4, np.float32, small=True) for form in range(12)]
    assert simulated(layers, capacity=272, ctas=2) == []
    for layer in layers:
        assert layer.is_exact()


@pytest.mark.parametrize("out", OUT_TYPES[1:])
@pytest.mark.parametrize("rank", [17, 72])
def test_both_parts_of_split_operands_are_multiplied(rank: int, out: Any) -> None:
    """On tensor cores, in two CTAs: both forms, tails, whole runs and strided operands."""
    rng = np.random.default_rng(rank)
    layers = [
        split_case(rng, 0, (70, 136, rank), out),
        split_case(rng, 1, (5, 40, rank), out, strided=True),
        split_case(rng, 0, (33, 21, 32), out, strided=True),
    ]
    assert simulated(layers, capacity=8, ctas=2, seed=rank) == []
    for layer in layers:
        assert layer.is_exact()


@pytest.mark.parametrize("operand", OUT_TYPES[1:])
def test_operands_of_16_bits_lose_nothing_on_tensor_cores(operand: Any) -> None:
    rng = np.random.default_rng(5)
    scale = 127 if operand is np.uint16 else 2047
    a = as_type(rng.integers(-scale, scale + 1, (34, 24)), operand)
    b = as_type(rng.integers(-1, 2, (24, 64)), operand)
    layer = RebuildCase(None, [a, b], 0, 0.5, np.full((34, 64), 0x7FC1, np.uint16))
    layer.w0 = as_type(-as_float(layer.expected()), np.uint16)
    assert simulated([layer], capacity=8, ctas=1) == []
    assert layer.is_exact()


@pytest.mark.parametrize(("form", "rank"), [(0, 20), (0, 64), (1, 40)])
def test_tensor_cores_stay_within_the_derived_bound(form: int, rank: int) -> None:
    """The base takes the rounded delta away, so that the result shows the error of its sums."""
    draw = torch.Generator().manual_seed(rank)
    operands = [torch.randn(s, generator=draw) for s in shapes(form, 64, 128, rank)]
    formula: Any = (reference.low_rank, reference.hadamard)[form]
    w0 = -formula(None, *operands, 1.0).value.bfloat16()
    exact = formula(w0, *operands, 1.0)
    layer = RebuildCase(
        to_bf16(w0.float().numpy()), [a.numpy() for a in operands], form, 1.0,
        np.full((64, 128), 0x7FC1, np.uint16),
    )  # fmt: skip
    assert simulated([layer], capacity=8, ctas=1) == []
    error = (torch.from_numpy(from_bf16(layer.out)).double() - exact.value).abs()
    terms = rank + (rank // 2 + 2) * form
    assert (error <= exact.bound(terms, torch.bfloat16, products=1 + form)).all()


def test_infinite_operands_stay_in_their_row_and_column() -> None:
    a, b = np.ones((9, 17), np.float32), np.ones((17, 16), np.float32)
    a[3, 16], b[2, 5] = np.inf, -np.inf
    layer = RebuildCase(None, [a, b], 0, 1.0, np.zeros((9, 16), np.uint16))
    assert simulated([layer], capacity=8, ctas=1) == []
    expected = np.full((9, 16), 17.0)
    expected[3, :] = expected[:, 5] = np.nan
    np.testing.assert_array_equal(from_bf16(layer.out), expected)


def test_layers_of_both_kernels_are_rounded_by_their_numbers() -> None:
    rng = np.random.default_rng(8)
    layers = [draw_layer(rng, 0, np.uint16, size=(20, 24, rank)) for rank in (20, 4, 20)]
    for layer in layers:
        layer.w0 = (rng.integers(-1024, 1025, (20, 24)) * 2.0**-10).astype(np.float16)
    assert simulated(layers, capacity=8, ctas=2, rounding_seed=5) == []
    for layer, exact in zip(layers, by_cpu(layers, 0, 5), strict=True):
        np.testing.assert_array_equal(layer.out, to_bf16(exact.float().numpy()))


def by_cpu(layers: list[RebuildCase], form: int, seed: int) -> list[Tensor]:
    w0 = [torch.from_numpy(as_float(layer.w0)).float() for layer in layers if layer.w0 is not None]
    operands = [
        torch.from_numpy(np.ascontiguousarray(as_float(a))).float()
        for layer in layers
        for a in layer.operands
    ]
    forms, scales = [form] * len(layers), [0.5] * len(layers)
    out: list[Tensor] = torch.ops.wlib.rebuild(
        w0, operands, forms, scales, out_dtype=torch.bfloat16, seed=seed
    )
    return out


@pytest.mark.parametrize("form", range(4))
def test_stochastic_rounding_gives_the_bits_of_the_cpu(form: int) -> None:
    """Operands whose sums are exact, a base that has to be rounded."""
    layers = [stochastic_case(np.random.default_rng(form), form, n) for n in (24, 28)]
    assert simulated(layers, capacity=8, ctas=2, rounding_seed=5) == []
    for layer, exact in zip(layers, by_cpu(layers, form, 5), strict=True):
        np.testing.assert_array_equal(layer.out, to_bf16(exact.float().numpy()))


@pytest.mark.parametrize("capacity", [8])
def test_result_does_not_depend_on_the_schedule(capacity: int) -> None:
    rng = np.random.default_rng(3)
    layer = draw_layer(rng, 1, np.float32)
    layer.operands = [rng.standard_normal(a.shape).astype(np.float32) for a in layer.operands]
    results = set()
    options: Any
    for options in ({"seed": 1}, {"seed": 2, "preempt_every": 300}, {"seed": 3}):
        assert simulated([layer], capacity=capacity, ctas=2, **options) == []
        results.add(layer.out.tobytes())
    assert len(results) == 1


def test_random_layers_agree_with_the_cpu() -> None:
    """Fused multiply-adds round less often than the CPU's: at most once per term and result."""
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((70, 33), (33, 140)))
    out = rebuild(None, [a, b], 0, 0.5)
    cpu = wlib.rebuild.lora(None, torch.from_numpy(b), torch.from_numpy(a), 0.5).numpy()
    bound = 2 * 34 * 2.0**-24 * 0.5 * (np.abs(a) @ np.abs(b))
    assert (np.abs(out - cpu) <= bound).all()
