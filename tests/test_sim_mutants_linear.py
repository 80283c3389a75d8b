"""Every bug planted in the kernels of linear layers over atoms is caught, by the right check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from linear_problems import LinearCase, make_case
from sim.mutants_linear import CONTROL, MUTANTS
from sim.planting import Mutant, Results, apply, run_all


def make_cases() -> list[LinearCase]:
    """Rings that wrap, more items than CTAs, tails, shares of columns, blocks of atoms."""
    cases = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": timing, "preempt_every": 300 * (seed == 2)}
        cases.append(make_case(rng, np.uint16, 67, 3, 140, 200, ctas=1, options=options))
    cases.append(make_case(rng, np.uint16, 3, 4, 70, 520, ctas=1))
    cases.append(make_case(rng, np.uint16, 67, 5, 140, 400, ctas=1, fp8=True))
    cases.append(make_case(rng, np.uint16, 3, 130, 5, 64, ctas=1))
    return cases


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("mutants")
    return run_all([CONTROL, *MUTANTS], {"sim_linear.cpp": make_cases()}, folder)


def test_every_edit_fits_the_sources(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        apply(mutant, tmp_path)


@pytest.mark.slow
def test_the_original_is_silent(results: Results) -> None:
    assert results[CONTROL.name] == {"cases": 6, "fired": {}, "first": {}}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: Results, mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
