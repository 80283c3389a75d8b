"""Which kernel serves more than 64 tokens: the cheapest by the stated costs."""

from __future__ import annotations

import pytest
import wlib_probe

import wlib
from gpu.gpu_problems import TILES

SMS = 132
TOKENS = (65, 127, 128, 129, 256, 1000, 4096, 16384)
SHAPES = ((1, 32), (65, 128), (384, 384), (4096, 4096), (14336, 4096), (57344, 8192))


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def ping_pong_cost(m: int, n: int, k: int) -> int:
    """24832 bytes per 128 columns at 32 a cycle, 512 cycles of wgmmas behind; outputs but once."""
    rounds = ceil(ceil(n, 128) * ceil(m, 128), SMS)
    return rounds * ceil(k, 128) * 776 + 2000


def pairs_cost(m: int, n: int, k: int) -> int:
    """1024 cycles of wgmmas per 128 columns, 25088 bytes behind; 66 pairs of 512 rows."""
    rounds = ceil(ceil(n, 512) * ceil(m, 128), SMS // 2)
    return rounds * (ceil(k, 128) * 1024 + 2000)


def decode_cost(m: int, n: int, k: int) -> int:
    """Rounds of 64 rows x 64 tokens, K split by the decode plan; 12416 bytes per 128 columns."""
    rows, tiles = ceil(n, 64), ceil(k, 128)
    resident = [SMS, SMS // 2, SMS // 4, SMS // 8]
    log2, clusters = wlib_probe.int4fp8_decode_plan(rows, tiles, 64, resident)
    return ceil(rows * ceil(m, 64), clusters) * ((tiles >> log2) + 2) * 388


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("m", TOKENS)
def test_the_cheapest_kernel_is_taken(m: int, n: int, k: int) -> None:
    costs = {
        "256x128 in pairs": pairs_cost(m, n, k),
        "128x128 ping-pong": ping_pong_cost(m, n, k),
        "decode in blocks of 64": decode_cost(m, n, k),
    }
    assert wlib_probe.int4fp8_large_plan(m, n, k, SMS) == min(costs, key=lambda c: costs[c])


@pytest.mark.parametrize("experts", [1, 8, 128])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_experts_count_half_a_token_tile_each(n: int, k: int, experts: int) -> None:
    for m in TOKENS:
        costs = {
            "256x128 in pairs": pairs_cost(m + 64 * experts, n, k),
            "128x128 ping-pong": ping_pong_cost(m + 64 * experts, n, k),
            "decode in blocks of 64": decode_cost(m + 32 * experts, n, k),
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


MODELS = {  # qkv, o, gate and up, down: (n, k)
    "Llama-3-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "Llama-3-70B": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
    "Qwen2.5-7B": ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)),
    "Qwen2.5-32B": ((7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648)),
    "Qwen2.5-72B": ((10240, 8192), (8192, 8192), (59136, 8192), (8192, 29568)),
    "Mixtral-8x7B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "Mixtral-8x22B": ((8192, 6144), (6144, 6144), (32768, 6144), (6144, 16384)),
}


@pytest.mark.parametrize("model", MODELS)
def test_plan_of_models(model: str) -> None:
    """Many tokens never re-read weights and keep most SMs busy; `pytest -s` prints the table."""
    for n, k in MODELS[model]:
        plans = [wlib_probe.int4fp8_large_plan(m, n, k, SMS) for m in TOKENS]
        print(f"{model:14} n={n:6} k={k:6} ", *plans, sep="  ")
        assert not any(plan.startswith("decode") for plan in plans[TOKENS.index(1000) :])
        ideal = n * TOKENS[-1] / (128 * 128) / SMS * (k / 128) * 512
        assert min(pairs_cost(TOKENS[-1], n, k), ping_pong_cost(TOKENS[-1], n, k)) < 1.35 * ideal


def test_info_prints_the_choice() -> None:
    rows = wlib.info().tiles
    assert len(rows) == 32
    for row in rows:
        m, n, k = (int(part.split(" = ")[1]) for part in row.partition(": ")[0].split(", "))
        assert row.endswith(": " + wlib_probe.int4fp8_large_plan(m, n, k, SMS))
        assert row in str(wlib.info())


@pytest.mark.parametrize("tile", TILES)
def test_gpu_tests_reach_every_tile(tile: str) -> None:
    m, n, k = TILES[tile]
    for columns in (k, 5 * k + 128):
        assert wlib_probe.int4fp8_large_plan(m, n, columns, SMS) == tile
