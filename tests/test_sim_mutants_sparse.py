"""Every bug planted in the kernels on sparse matrices is caught, by the check we expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.mutants_sparse import CONTROL, MUTANTS
from sim.planting import Mutant, Results, apply, run_all
from sparse_problems import SparseCase, exact_case


def make_cases() -> list[SparseCase]:
    """More values than a step or pass takes, tails, whole tiles, more items than CTAs,
    splits, an odd number of tiles."""
    cases = []
    kinds = ("forward", "transposed", "sampled")
    for kind in kinds:
        for seed, dtype in enumerate((np.uint16, np.float32)):
            options: dict[str, Any] = {"seed": seed, "preempt_every": 300 * seed}
            rng = np.random.default_rng(seed)
            cases.append(  # rows at 16-byte boundaries, but not whole ones
                exact_case(rng, kind, dtype, rows=141, columns=141, tokens=131, density=0.1,
                           pad=3, ctas=1, options=options)
            )  # fmt: skip
        cases.append(exact_case(rng, kind, np.uint16, rows=264, columns=264, tokens=130, ctas=1))
    many = exact_case(rng, "sampled", np.uint16, rows=9, columns=5, tokens=4097)
    many.values = many.values.astype(np.float32)  # integers beyond what 16 bits hold
    return [*cases, many]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("mutants")
    return run_all([CONTROL, *MUTANTS], {"sim_sparse.cpp": make_cases()}, folder)


def test_every_edit_fits_the_sources(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        apply(mutant, tmp_path)


@pytest.mark.slow
def test_the_original_is_silent(results: Results) -> None:
    assert results[CONTROL.name] == {"cases": 10, "fired": {}, "first": {}}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: Results, mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
