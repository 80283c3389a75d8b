"""The kernels of linear layers over shared atoms in the simulator, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from linear_problems import make_case
from rebuild_problems import as_float
from sim_problems import probe

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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_exact_problems_match_bit_for_bit(size: tuple[int, int, int, int], seed: int) -> None:
    case = make_case(
        np.random.default_rng(seed), TYPES[seed % 2], *size, own=seed != 1, extras=seed != 2,
        ctas=1 + seed,
        options={"seed": seed, "timing": TIMINGS[seed], "preempt_every": (0, 400)[seed % 2]},
    )  # fmt: skip
    assert case.run() == ([], True)


@pytest.mark.parametrize("dtype", TYPES)
def test_result_does_not_depend_on_the_schedule_and_is_within_the_bound(dtype: Any) -> None:
    """Chains of additions: 64 products, 36 summands of a share, two shares, the bias."""
    results = set()
    for ctas, options in ((1, {"seed": 1}), (3, {"seed": 2, "preempt_every": 500})):
        rng = np.random.default_rng(9)
        case = make_case(rng, dtype, 7, 3, 70, 520, exact=False, ctas=ctas, options=options)
        assert case.simulate() == []
        assert case.out is not None
        results.add(case.out.tobytes())
    assert len(results) == 1
    true = case.reference()
    out_type = torch.bfloat16 if dtype is np.uint16 else torch.float16
    bound = true.bound(64 + 36 + 2 + 1, out_type).numpy()
    assert (np.abs(as_float(case.out) - true.value.numpy()) <= bound).all()


def test_nan_of_a_token_stays_with_it() -> None:
    case = make_case(np.random.default_rng(0), np.float16, 3, 2, 9, 72, extras=False)
    case.x[1, 70] = np.nan
    assert case.simulate() == []
    assert case.out is not None
    assert np.isnan(case.out).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(case.out).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("sizes", "plan"),
    [  # tokens, rows, columns, atoms -> blocks of tokens, rows and atoms, chunks and their shares
        ((1, 4096, 4096, 8), [1, 32, 1, 64, 4]),
        ((64, 14336, 4096, 8), [1, 112, 1, 64, 7]),
        ((65, 768, 768, 4), [2, 6, 1, 12, 3]),
        ((1, 1, 8, 129), [1, 1, 2, 1, 1]),
        ((1, 64, 4096, 1), [1, 1, 1, 64, 4]),
    ],
)
def test_plan(sizes: tuple[int, int, int, int], plan: list[int]) -> None:
    assert probe.atoms_linear_plan(*sizes) == plan
