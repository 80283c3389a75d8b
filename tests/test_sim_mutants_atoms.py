"""Every bug planted in the kernels of the atoms family is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.mutants.atoms import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sim_atoms import AtomsCase, CombineCase, StepCase


def make_cases() -> Cases:
    """Several tiles, groups and rows each, tails everywhere."""
    options = {"seed": 1, "preempt_every": 300}
    atoms: list[Any] = [
        AtomsCase((9, 1, 1104), 10, options, atom=np.uint16, grad=np.uint16, base=np.float32),
        AtomsCase((10, 3, 70), 9, options, per_row=True, rank=2, ctas=1, base=np.float32),
        AtomsCase((9, 1, 1030), 9, options, resident=False, shift=1),
        AtomsCase((1, 1, 512 * 300), 1, {}, forward=False, ctas=1),  # two tiles a chunk
        AtomsCase((13, 2, 37), 70, options, per_row=True, forward=False, ctas=1),
        StepCase("adamw", options, np.uint16),
        StepCase("lion", options, resident=False),
        StepCase("adamw", options, resident=False, shape=(3, 1, 1025)),
        CombineCase(3, 2, (5, 0, 1024, 1025, 3, 2050, 0), options),
    ]
    return {"sim_atoms.cpp": atoms}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
