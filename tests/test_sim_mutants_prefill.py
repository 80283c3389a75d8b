"""Every bug planted in the attention kernel is caught, by the check we expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attention_calls import AttentionCase
from attention_problems import call
from sim.mutants_prefill import CONTROL, MUTANTS
from sim.planting import Mutant, Results, apply, run_all
from test_prefill import make


def make_cases() -> list[AttentionCase]:
    """More steps than stages, several items per CTA, every option, both slices of an output."""
    cases = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        simulation: dict[str, Any] = {"seed": seed, "timing": timing}
        common: dict[str, Any] = {"simulation": simulation, "ctas": 1}
        sinks = torch.tensor([-1.0, 1.0, 0.5, 2.0])
        long = make([70, 3], [330, 65], dim=128, new=True, smooth=True, seed=seed)
        long.kv.v_scale[::2] *= 4  # units differ from step to step
        calls = [
            call(long, sinks=sinks, **common),
            call(make([65, 1, 9], [200, 64, 100], dim=128), window_size=(70, 3), **common),
            call(make([3], [700], dim=128), sinks=sinks, splits=3, **common),
            call(make([20], [100], dim=128, smooth=True), softcap=3.0, **common),
        ]
        halves = make([66, 1, 3], [300, 64, 10], dim=128, seed=seed)
        halves.kv.v_scale[::2] *= 4
        halves.kv.k_scale[::3] *= 2
        halves.q_scale[5:9] *= -1
        half: dict[str, Any] = {"allow_fp16_scores": True, **common}
        calls += [
            call(halves, window_size=(70, 0), **half),
            call(make([20], [130], dim=128), softmax_scale=(0.1, 2.0**60, 2.0**-60)[seed], **half),
            call(make([20], [64], dim=128, new=True), **half),
        ]
        cases += [AttentionCase.of(one) for one in calls]
    return cases


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("mutants_prefill")
    return run_all([CONTROL, *MUTANTS], {"sim_attention.cpp": make_cases()}, folder)


def test_every_edit_fits_the_sources(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        apply(mutant, tmp_path)


@pytest.mark.slow
def test_the_original_is_silent(results: Results) -> None:
    assert results[CONTROL.name] == {"cases": 21, "fired": {}, "first": {}}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: Results, mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
