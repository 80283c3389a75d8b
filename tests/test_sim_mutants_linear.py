"""Every bug planted in the kernels of linear layers over atoms is caught, by the right check."""

from __future__ import annotations

import numpy as np

from linear_problems import make_case
from sim.mutants.linear import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases


def make_cases() -> Cases:
    """Rings that wrap, more items than CTAs, tails, shares of columns, blocks of atoms."""
    cases = []
    for seed, timing in enumerate(("random", "lazy", "eager")):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": timing, "preempt_every": 300 * (seed == 2)}
        cases.append(make_case(rng, np.uint16, 67, 3, 140, 200, ctas=1, options=options))
    cases.append(make_case(rng, np.uint16, 3, 4, 70, 520, ctas=1))
    cases.append(make_case(rng, np.uint16, 67, 5, 140, 400, ctas=1, fp8=True))
    cases.append(make_case(rng, np.uint16, 3, 130, 5, 64, ctas=1))
    return {"sim_linear.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
