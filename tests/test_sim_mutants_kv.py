"""Every bug planted in the kernels of the INT4 cache is caught, by the check we expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kv_problems import AppendCase, QueriesCase, append_case, case_beyond, queries_case, slots_of
from sim.mutants_kv import CONTROL, MUTANTS
from sim.planting import Mutant, Results, apply, run_all

SLOTS = (
    slots_of((60, 70)),
    slots_of((10, 4), (64, 2), (12, 3), (64, 1)),  # twice, by tokens of different CTAs
    slots_of((0, 40), (64, 64), (20, 24)),  # twice, too far apart for one warp
)


def make_cases() -> list[AppendCase | QueriesCase]:
    """Full and partly filled blocks, slots given twice, rows that are not aligned."""
    cases: list[AppendCase | QueriesCase] = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": timing, "preempt_every": 20 * seed}
        cases += [append_case(rng, slots, options, heads_per_cta=2, smooth=True) for slots in SLOTS]
        cases += [queries_case(rng, options), queries_case(rng, options, tokens=40)]
    rows = append_case(rng, SLOTS[1], {})
    rows.v = np.pad(rows.v, ((0, 0), (0, 0), (1, 2)))[:, :, 1:65]
    return [*cases, rows, case_beyond(rng, {})]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("mutants")
    return run_all([CONTROL, *MUTANTS], {"sim_kv.cpp": make_cases()}, folder)


def test_every_edit_fits_the_sources(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        apply(mutant, tmp_path)


@pytest.mark.slow
def test_the_original_is_silent(results: Results) -> None:
    assert results[CONTROL.name] == {"cases": len(make_cases()), "fired": {}, "first": {}}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: Results, mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
