"""Every bug planted in the kernels of the INT4 cache is caught, by the check we expect."""

from __future__ import annotations

import numpy as np

from kv_problems import AppendCase, QueriesCase, append_case, case_beyond, queries_case, slots_of
from sim.mutants.kv import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases

SLOTS = (
    slots_of((60, 70)),
    slots_of((10, 4), (64, 2), (12, 3), (64, 1)),  # twice, by tokens of different CTAs
    slots_of((0, 40), (64, 64), (20, 24)),  # twice, too far apart for one warp
)


def make_cases() -> Cases:
    """Full and partly filled blocks, slots given twice, rows that are not aligned."""
    cases: list[AppendCase | QueriesCase] = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": timing, "preempt_every": 20 * seed}
        cases += [append_case(rng, slots, options, heads_per_cta=2, smooth=True) for slots in SLOTS]
        cases += [queries_case(rng, options), queries_case(rng, options, tokens=40)]
    rows = append_case(rng, SLOTS[1], {})
    rows.v = np.pad(rows.v, ((0, 0), (0, 0), (1, 2)))[:, :, 1:65]
    return {"sim_kv.cpp": [*cases, rows, case_beyond(rng, {})]}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
