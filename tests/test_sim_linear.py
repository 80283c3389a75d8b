"""The kernels of linear layers over shared atoms in the simulator, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from linear_problems import make_case
from rebuild_problems import as_float, as_type
from sim_problems import probe
from wlib import Int4Weight, pack_experts

TYPES = (np.uint16, np.float16)
TIMINGS = ("random", "lazy", "eager")
SIZES = (  # tokens, atoms, rows, columns: one of all; tails; rings that wrap; shares; atom blocks
    (1, 1, 1, 8),
    (5, 3, 130, 72),
    (64, 2, 128, 64),
    (65, 2, 100, 200),
    (7, 4, 200, 520),
    (9, 131, 6, 64),
)


@pytest.mark.parametrize("fp8", [False, True], ids=["16-bit", "fp8"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_exact_problems_match_bit_for_bit(
    size: tuple[int, int, int, int], seed: int, fp8: bool
) -> None:
    m, s, n, k = size
    size = m, s, n, -(-k // 16) * 16 if fp8 else k  # rows at 16-byte boundaries
    case = make_case(
        np.random.default_rng(seed), TYPES[seed % 2], *size, own=seed != 1, extras=seed != 2,
        ctas=1 + seed, fp8=fp8,
        options={"seed": seed, "timing": TIMINGS[seed], "preempt_every": (0, 400)[seed % 2]},
    )  # fmt: skip
    assert case.run() == ([], True)


INT4_SIZES = (  # tokens, atoms, rows, columns, group size: tails, all groups of a tile, shares
    (1, 1, 1, 32, 32),
    (5, 3, 130, 160, 32),
    (33, 2, 300, 192, 64),
    (7, 9, 70, 384, 128),
    (9, 131, 6, 32, 32),
)


@pytest.mark.parametrize("size", INT4_SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_exact_problems_with_int4_atoms(size: tuple[int, int, int, int, int], seed: int) -> None:
    case = make_case(
        np.random.default_rng(seed), TYPES[seed], *size[:4], own=seed != 1, extras=seed != 1,
        ctas=1 + seed, group_size=size[4],
        options={"seed": seed, "timing": TIMINGS[seed], "preempt_every": (0, 400)[seed]},
    )  # fmt: skip
    assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_int4_code_is_taken_exactly(dtype: Any) -> None:
    """Token m is 1 in column m alone; row n has codes n + k."""
    case = make_case(np.random.default_rng(0), dtype, 32, 1, 64, 32, extras=False, group_size=32)
    case.x = as_type(np.eye(32), dtype)
    codes = (np.add.outer(np.arange(64), np.arange(32)) & 15).astype(np.uint8)
    scale = 2.0 ** torch.arange(64).remainder(7)[:, None].bfloat16()
    packed = torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)
    case.atoms = pack_experts([Int4Weight(packed, scale)])
    case.coef[:] = 1
    assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("size", "group_size", "terms"),
    [  # chains of additions: products, groups, summands of a share, two shares, the bias
        ((7, 3, 70, 520), 0, 64 + 36 + 2 + 1),
        ((7, 9, 70, 384), 32, 32 + 4 + 22 + 2 + 1),
    ],
)
def test_result_does_not_depend_on_the_schedule_and_is_within_the_bound(
    dtype: Any, size: tuple[int, int, int, int], group_size: int, terms: int
) -> None:
    results = set()
    for ctas, options in ((1, {"seed": 1}), (3, {"seed": 2, "preempt_every": 500})):
        rng = np.random.default_rng(9)
        case = make_case(
            rng, dtype, *size, exact=False, group_size=group_size, ctas=ctas, options=options
        )
        assert case.simulate() == []
        assert case.out is not None
        results.add(case.out.tobytes())
    assert len(results) == 1
    true = case.reference()
    out_type = torch.bfloat16 if dtype is np.uint16 else torch.float16
    bound = true.bound(terms, out_type).numpy()
    assert (np.abs(as_float(case.out) - true.value.numpy()) <= bound).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_every_fp8_code_is_taken_exactly(dtype: Any) -> None:
    """Row i has code i in its own column."""
    case = make_case(np.random.default_rng(0), dtype, 8, 1, 256, 256, extras=False, fp8=True)
    case.atoms[:] = 0
    case.atoms[0, range(256), range(256)] = [c if c & 127 != 127 else 0 for c in range(256)]
    case.coef[:] = 1
    assert case.run() == ([], True)


def test_nan_of_a_token_stays_with_it() -> None:
    case = make_case(np.random.default_rng(0), np.float16, 3, 2, 9, 72, extras=False)
    case.x[1, 70] = np.nan
    assert case.simulate() == []
    assert case.out is not None
    assert np.isnan(case.out).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(case.out).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("sizes", "plan"),
    [  # tokens, rows, columns, atoms, their bits -> blocks of the first, chunks, shares
        ((1, 4096, 4096, 8, 16), [1, 32, 1, 64, 4]),  # of tokens, rows, atoms
        ((1, 4096, 4096, 8, 8), [1, 32, 1, 32, 4]),
        ((1, 4096, 4096, 8, 4), [1, 22, 1, 32, 6]),
        ((64, 14336, 4096, 8, 16), [1, 112, 1, 64, 7]),
        ((65, 768, 768, 4, 16), [2, 6, 1, 12, 3]),
        ((65, 768, 768, 4, 4), [3, 4, 1, 6, 1]),
        ((1, 1, 8, 129, 16), [1, 1, 2, 1, 1]),
        ((1, 64, 4096, 1, 16), [1, 1, 1, 64, 4]),
        ((8192, 4096, 4096, 8, 16), [128, 32, 1, 64, 1]),
    ],
)
def test_plan(sizes: tuple[int, int, int, int, int], plan: list[int]) -> None:
    assert probe.atoms_linear_plan(*sizes) == plan
