"""Which kernel serves more than 64 tokens: the cheapest by the stated costs."""

from __future__ import annotations

import pytest
import wlib_probe

from wlib.bench.suites import load_suite

SMS = 132
TOKENS = (65, 127, 128, 129, 256, 1000, 4096, 16384)
SHAPES = ((1, 32), (65, 128), (384, 384), (4096, 4096), (14336, 4096), (57344, 8192))


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def cooperative_cost(m: int, n: int, k: int, slabs: int) -> int:
    """Rounds of tiles of 128 * slabs rows x 128 tokens; 2 * 256 cycles a slab and 128 columns."""
    rounds = ceil(ceil(n, 128 * slabs) * ceil(m, 128), SMS)
    return rounds * slabs * (ceil(k, 128) * 512 + 1000)


def decode_cost(m: int, n: int, k: int) -> int:
    """Rounds of 64 rows x 64 tokens, K split by the decode plan; 256 cycles per 128 columns."""
    rows, tiles = ceil(n, 64), ceil(k, 128)
    resident = [SMS, SMS // 2, SMS // 4, SMS // 8]
    log2, clusters = wlib_probe.int4fp8_decode_plan(rows, tiles, 64, resident)
    return ceil(rows * ceil(m, 64), clusters) * ((tiles >> log2) + 2) * 256


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", TOKENS)
def test_the_cheapest_kernel_is_taken(m: int, n: int, k: int) -> None:
    costs = {
        "cooperative 256x128": cooperative_cost(m, n, k, 2),
        "cooperative 128x128": cooperative_cost(m, n, k, 1),
        "decode": decode_cost(m, n, k),
    }
    assert wlib_probe.int4fp8_large_plan(m, n, k, SMS) == min(costs, key=lambda c: costs[c])


@pytest.mark.parametrize("experts", [1, 8, 128])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_experts_count_half_a_token_tile_each(n: int, k: int, experts: int) -> None:
    for m in TOKENS:
        costs = {
            "cooperative 256x128": cooperative_cost(m + 64 * experts, n, k, 2),
            "cooperative 128x128": cooperative_cost(m + 64 * experts, n, k, 1),
            "decode": decode_cost(m + 32 * experts, n, k),
        }
        plan = wlib_probe.int4fp8_large_plan(m, n, k, SMS, experts)
        assert plan == min(costs, key=lambda c: costs[c])


def test_experts_are_planned_by_twice_their_average() -> None:
    for m, experts, tokens in (
        (5, 0, 5),
        (2, 8, 1),
        (8, 8, 2),
        (33, 8, 9),
        (256, 8, 64),
        (1, 1, 2),
    ):
        assert wlib_probe.int4fp8_planned_tokens(m, experts) == tokens


def test_plan_of_llama_shapes() -> None:
    """Many tokens never re-read the weights; `pytest -s` prints the table."""
    for shape in (*load_suite("llama3-8b").shapes, *load_suite("llama3-70b").shapes):
        plans = [wlib_probe.int4fp8_large_plan(m, shape.n, shape.k, SMS) for m in TOKENS]
        print(f"{shape.name:24} n={shape.n:6} k={shape.k:6} ", *plans, sep="  ")
        assert all(plan.startswith("cooperative") for plan in plans[TOKENS.index(1000) :])
