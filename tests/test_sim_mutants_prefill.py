"""Every bug planted in the attention kernel is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import torch

from attention_calls import AttentionCase
from attention_problems import call
from sim.mutants.prefill import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from test_prefill import make


def make_cases() -> Cases:
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
    return {"sim_attention.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
