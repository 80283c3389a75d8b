"""The cache's writer and the quantiser of queries in the simulator: the CPU's bits, no finding."""

from __future__ import annotations

import numpy as np
import pytest

from kv_problems import append_case, case_beyond, queries_case, slots_of
from sim_problems import probe

DTYPES = (np.float32, np.float16, np.uint16)
DIMS = (64, 128, 256)
RUNS = {
    "one token": slots_of((70, 1)),
    "across blocks": slots_of((60, 70)),
    "two sequences in turns": np.stack((slots_of((3, 9)), slots_of((67, 9))), axis=1).ravel(),
    "one block each": slots_of((5, 1), (64 + 63, 1), (3 * 64, 1)),
    "backwards": slots_of((120, 12))[::-1].copy(),
    "skipped": np.where(np.arange(20) % 3 == 0, -1, slots_of((50, 20))),
    "twice": slots_of((10, 4), (64, 2), (12, 3), (64, 1)),
    "a block twice, far apart": slots_of((0, 40), (64, 64), (40, 24)),
    "none": np.full(5, -1),
}


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("tokens_per_cta", [1, 8])
def test_append_gives_the_bits_of_the_cpu(runs: str, tokens_per_cta: int) -> None:
    for seed, timing in enumerate(("random", "lazy", "eager")):
        rng = np.random.default_rng(seed)
        case = append_case(
            rng, RUNS[runs], {"seed": seed, "timing": timing}, tokens_per_cta=tokens_per_cta
        )
        assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_append_of_every_type_and_size(dtype: type, dim: int) -> None:
    rng = np.random.default_rng(dim)
    case = append_case(
        rng,
        RUNS["across blocks"],
        {"seed": dim, "preempt_every": 50},
        dim=dim,
        dtype=dtype,
        heads=3,
        heads_per_cta=2,
        smooth=True,
    )
    assert case.run() == ([], True)


@pytest.mark.parametrize("what", ["zeros", "nan", "inf", "tiny", "huge"])
def test_append_of_special_values(what: str) -> None:
    case = append_case(np.random.default_rng(0), RUNS["across blocks"], {}, dtype=np.float32)
    for x in (case.k, case.v):
        if what in ("nan", "inf"):
            x[3, 1, 5] = np.float32(what)
        else:
            x[3] *= {"zeros": 0, "tiny": 1e-42, "huge": 1e38}[what]
    assert case.run() == ([], True)


def test_append_takes_rows_that_are_not_aligned() -> None:
    case = append_case(np.random.default_rng(1), RUNS["across blocks"], {})
    wide = np.zeros((70, 2, 67), np.uint16)
    wide[:, :, 1:65] = case.v
    case.v = wide[:, :, 1:65]
    assert case.run() == ([], True)


def test_append_leaves_slots_beyond_the_cache_alone() -> None:
    """On a GPU nobody looks at the slots before; the CPU's op refuses them."""
    assert case_beyond(np.random.default_rng(2), {}).run() == ([], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("smooth", "rope"), [(False, False), (True, False), (True, True)])
def test_queries_get_the_bits_of_the_cpu(dtype: type, dim: int, smooth: bool, rope: bool) -> None:
    rng = np.random.default_rng(dim)
    options = {"seed": dim, "preempt_every": 50 * rope}
    assert queries_case(rng, options, dim=dim, dtype=dtype, smooth=smooth, rope=rope).run() == (
        [],
        True,
    )


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (3, 5), (40, 4)])
def test_queries_of_few_and_many_rows(tokens: int, heads: int) -> None:
    rng = np.random.default_rng(tokens)
    assert queries_case(rng, {}, tokens=tokens, heads=heads, kv_heads=1).run() == ([], True)


@pytest.mark.parametrize("what", ["zeros", "nan", "inf", "tiny"])
def test_queries_of_special_values(what: str) -> None:
    case = queries_case(np.random.default_rng(3), {}, dtype=np.float32)
    if what in ("nan", "inf"):
        case.q[2, 1, 5] = np.float32(what)
    else:
        case.q[2] *= {"zeros": 0, "tiny": 1e-42}[what]
    assert case.run() == ([], True)


def test_queries_take_rows_that_are_not_aligned() -> None:
    case = queries_case(np.random.default_rng(4), {})
    wide = np.zeros((*case.q.shape[:2], 67), np.uint16)
    wide[:, :, 1:65] = case.q
    case.q = wide[:, :, 1:65]
    assert case.run() == ([], True)


def test_the_plan_covers_every_token_and_head_and_fills_the_gpu() -> None:
    for heads in (1, 3, 8, 32):
        for tokens in (1, 64, 1000, 2048, 2049, 16384, 100_000):
            per_launch, per_cta, heads_per_cta = probe.append_plan(tokens, heads)
            assert 1 <= per_launch <= 16384
            assert per_launch == min(tokens, 16384)
            assert per_cta == (1 if tokens <= 2048 else 8)
            assert 1 <= heads_per_cta <= heads
            writers = -(-heads // heads_per_cta) * max(1, per_launch // 64)
            assert heads_per_cta == 1 or writers >= 200
