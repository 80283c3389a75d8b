"""Every bug planted in how INT4 atoms are multiplied is caught, by the right check."""

from __future__ import annotations

import numpy as np

from linear_problems import make_case
from sim.mutants.linear_int4 import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases


def make_cases() -> Cases:
    """One, two and four groups to a tile; two tiles; tails; rings that wrap; a base."""
    cases = []
    for seed, (size, group_size) in enumerate(
        [((33, 5, 70, 160), 32), ((3, 2, 260, 192), 64), ((7, 2, 130, 256), 128)]
    ):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": ("random", "lazy", "eager")[seed]}
        cases.append(
            make_case(rng, np.uint16, *size, ctas=1, group_size=group_size, options=options)
        )
    return {"sim_linear.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
