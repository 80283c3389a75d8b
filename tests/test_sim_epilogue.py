"""The epilogue of both GEMM kernels in the simulator: values, and no finding."""

from __future__ import annotations

import numpy as np
import pytest

from sim_numbers import rounded
from sim_problems import (
    COOPERATIVE_INSTANCES,
    INSTANCES,
    Epilogue,
    Problem,
    Shape,
    cooperative,
    decode,
    exact_problem,
)

TYPES = (np.float32, np.float16, np.uint16)
OUT_TYPES = (*TYPES, np.uint8)


def draw_epilogue(
    rng: np.random.Generator, shape: Shape, out: type[np.generic], silu_mul: bool
) -> Epilogue:
    """A residual of small integers in half of the cases; in a quarter it is the output as well."""
    columns = shape.n // 2 if silu_mul else shape.n
    in_place = bool(rng.integers(2)) and out is not np.uint8
    dtype = out if in_place else TYPES[rng.integers(3)]
    residual = rounded(rng.integers(-64, 65, (shape.m, columns)), dtype)
    with_residual = bool(rng.integers(2))
    return Epilogue(
        silu_mul,
        residual if with_residual else None,
        in_place and with_residual,
        np.float32(0.125) if out is np.uint8 else None,
    )


def draw_problem(seed: int, out: type[np.generic], silu_mul: bool, most_tokens: int) -> Problem:
    """Odd and even numbers of columns, so that stores are single and in pairs."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([2, 6, 62, 130]) if silu_mul else rng.choice([1, 7, 72, 129]))
    shape = Shape(int(rng.integers(1, most_tokens)), n, 128 * int(rng.integers(1, 3)), 128)
    problem = exact_problem(rng, shape)
    problem.epilogue = draw_epilogue(rng, shape, out, silu_mul)
    return problem


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("silu_mul", [False, True])
@pytest.mark.parametrize("out", OUT_TYPES)
def test_decode(out, silu_mul, seed):
    problem = draw_problem(seed, out, silu_mul, 13)
    y, findings = decode(problem, INSTANCES[-3], 1 + seed % 2, out=out, seed=seed)
    assert findings == []
    assert problem.is_right(y)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("silu_mul", [False, True])
@pytest.mark.parametrize("out", OUT_TYPES)
def test_cooperative(out, silu_mul, seed):
    problem = draw_problem(seed, out, silu_mul, 70)
    y, findings = cooperative(problem, COOPERATIVE_INSTANCES[-2], 1 + seed % 2, out=out, seed=seed)
    assert findings == []
    assert problem.is_right(y)


def test_a_problem_knows_what_is_wrong():
    """One output too large, a residual left out, and an element never written."""
    problem = exact_problem(np.random.default_rng(1), Shape(3, 8, 128, 128))
    problem.epilogue = Epilogue(True, np.ones((3, 4), np.float32))
    right = problem.epilogue.finish(problem.reference())[0].astype(np.float32)
    assert problem.is_right(right)
    larger = right.copy()
    larger[2, 3] = np.nextafter(larger[2, 3] * (1 + 2.0**-18), np.float32(np.inf)) + 1e-30
    assert not problem.is_right(larger)
    assert not problem.is_right(right - 1)
    assert not problem.is_right(np.where(right == right[0, 0], np.float32(np.nan), right))
