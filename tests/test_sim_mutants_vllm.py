"""Every bug planted in the producer of vLLM's cache is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

from attention_calls import AttentionCase
from attention_problems import call
from sim.mutants.vllm import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from vllm_problems import make


def make_cases() -> Cases:
    """More steps than stages, several items per CTA, blocks smaller than a step."""
    cases = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        simulation: dict[str, Any] = {"seed": seed, "timing": timing}
        s = make([70, 3], [330, 65], dim=128, new=True, block_size=(16, 48, 256)[seed], seed=seed)
        cases.append(AttentionCase.of(call(s, simulation=simulation, ctas=1)))
    return {"sim_attention.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
