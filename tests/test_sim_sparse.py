"""The kernels on sparse matrices in the simulator, against float64 and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import wlib
from rebuild_problems import OUT_TYPES, as_float, as_type
from sim_problems import probe
from sparse_problems import SparseCase, draw_support, exact_case, matrix_of

KINDS = ("forward", "transposed", "sampled")
TIMINGS = ("random", "lazy", "eager")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_exact_problems_match_bit_for_bit(kind: str, seed: int) -> None:
    """Tails, an empty tile, more values than a step or pass takes, few CTAs for many items."""
    rng = np.random.default_rng(seed)
    case = exact_case(
        rng,
        kind,
        OUT_TYPES[seed % 3],
        rows=int(rng.integers(3, 300)),
        columns=int(rng.integers(2, 300)),
        tokens=int(rng.integers(1, 300)),
        density=(0.03, 0.1, 0.4)[seed % 3],
        pad=(0, 8, 3)[seed // 4],
        extras=seed % 2 == 0,
        ctas=1 + seed % 3,
        options={"seed": seed, "timing": TIMINGS[seed % 3]},
    )
    assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", OUT_TYPES)
def test_whole_tiles_in_16_byte_accesses(dtype: Any) -> None:
    rng = np.random.default_rng(5)
    for kind in KINDS:
        case = exact_case(rng, kind, dtype, rows=256, columns=256, tokens=128, density=0.05)
        assert case.run() == ([], True)


@pytest.mark.parametrize("tokens", [2048, 2049, 4200])
def test_tokens_beyond_a_split_are_added_up(tokens: int) -> None:
    case = exact_case(
        np.random.default_rng(tokens), "sampled", np.uint16, rows=20, columns=9, tokens=tokens
    )
    case.values = np.zeros(case.support.count, np.float32)  # integers beyond what 16 bits hold
    assert case.run() == ([], True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_without_values(kind: str) -> None:
    rng = np.random.default_rng(0)
    case = exact_case(rng, kind, np.float32, rows=130, columns=3, tokens=5)
    case.support = wlib.SparseSupport.from_mask(torch.zeros(130, 3, dtype=torch.bool))
    case.values = case.values[:0]
    assert case.run() == ([], True)


def random_case(kind: str, dtype: Any, **arguments: Any) -> SparseCase:
    rng = np.random.default_rng(9)
    case = exact_case(rng, kind, dtype, rows=200, columns=140, tokens=140, density=0.05)
    for name in ("values", "left", "right", "base", "bias"):
        old = getattr(case, name)
        if old is not None:
            setattr(case, name, as_type(rng.standard_normal(old.shape), old.dtype.type))
    return SparseCase(**{**vars(case), **arguments})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_result_does_not_depend_on_the_schedule(kind: str, dtype: Any) -> None:
    results = set()
    runs: Any = ((1, {"seed": 1}), (3, {"seed": 2, "preempt_every": 500}), (7, {"seed": 3}))
    for ctas, options in runs:
        case = random_case(kind, dtype, ctas=ctas, options=options)
        assert case.simulate() == []
        assert case.out is not None
        results.add(case.out.tobytes())
    assert len(results) == 1


def as_torch(stored: Any) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    return tensor.view(torch.bfloat16) if stored.dtype == np.uint16 else tensor


@pytest.mark.parametrize("kind", KINDS[:2])
def test_random_float32_products_have_the_bits_of_the_cpu(kind: str) -> None:
    """Both add up in ascending order of the columns, by fused multiply-adds."""
    case = random_case(kind, np.float32)
    assert case.simulate() == []
    cpu = torch.ops.wlib.tile_sparse_matmul(
        as_torch(case.left), as_torch(case.values), case.support.positions, case.support.offsets,
        *case.support.shape, kind == "transposed", as_torch(case.base), as_torch(case.bias),
    )  # fmt: skip
    assert torch.equal(as_torch(case.out), cpu)


@pytest.mark.parametrize("dtype", OUT_TYPES[1:])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_random_16_bit_products_stay_within_the_bound(kind: str, dtype: Any) -> None:
    """Float32 sums of exact products, at most 300 with bias and base, and one rounding to 16 bits.

    The values are of x's type already or rounded to it first.
    """
    case = random_case(kind, dtype)
    assert case.simulate() == []
    assert case.out is not None
    values = as_type(as_float(case.values), dtype)
    s = matrix_of(values, case.support)
    s = s if kind == "transposed" else s.T
    left, extras = as_float(case.left), [as_float(case.bias), as_float(case.base)]
    exact = left @ s + sum(extras)
    size = np.abs(left) @ np.abs(s) + sum(map(np.abs, extras))
    roundoff = 2.0**-8 if dtype == np.uint16 else 2.0**-11
    error = np.abs(as_float(case.out) - exact)
    assert (error <= roundoff * np.abs(exact) * 1.01 + 300 * 2.0**-24 * size).all()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_random_samples_stay_within_the_bound(dtype: Any) -> None:
    """140 tokens: at most so many roundings per sum, of float32 values."""
    case = random_case("sampled", dtype)
    case.values = case.values.astype(np.float32)
    assert case.simulate() == []
    assert case.out is not None
    assert case.right is not None
    left, right = as_float(case.left), as_float(case.right)
    gather = case.support.gather
    exact = gather(torch.from_numpy(left.T @ right)).numpy()
    size = gather(torch.from_numpy(np.abs(left).T @ np.abs(right))).numpy()
    assert (np.abs(case.out - exact) <= 140 * 2.0**-24 * size).all()


def test_the_order_of_the_transposed_matrix() -> None:
    """Per tile the values by column, their positions those of the transpose's support."""
    rng = np.random.default_rng(2)
    support = draw_support(rng, 140, 300, 0.2)
    values = np.arange(support.count, dtype=np.float32)
    ordered, places = np.zeros_like(values), np.zeros(support.count, np.int16)
    report = probe.sparse_transpose(
        values, support.positions.numpy(), support.offsets.numpy(), 140, 300, ordered, places,
        ctas=3, options=probe.Options(),
    )  # fmt: skip
    assert list(report.findings) == []
    for begin, end in zip(support.offsets[:-1].tolist(), support.offsets[1:].tolist(), strict=True):
        own = support.positions[begin:end].long()
        key, order = (own % 128 * 128 + own // 128).sort()
        np.testing.assert_array_equal(places[begin:end], key.numpy())
        np.testing.assert_array_equal(ordered[begin:end], values[begin:end][order.numpy()])
