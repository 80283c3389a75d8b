"""Every bug planted in the kernels of the atoms family is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from rebuild_problems import draw_layer, split_case
from sim.mutants_atoms import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sim_atoms import DISTS, AtomsCase, CombineCase, ExpandCase, LayersCase, ProjectCase, StepCase


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
        *(ProjectCase(dist, 10, 4101, options, parts=2) for dist in DISTS),
        ProjectCase("sign", 10, 4101, options),
    ]
    rebuild: list[Any] = [ExpandCase(dist, 9, 5003, {"seed": 1}) for dist in DISTS]
    sizes = ((70, 140, 17), (66, 130, 20), (72, 144, 12), (72, 144, 12))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        layers = [draw_layer(rng, form, np.float32, size=s) for form, s in enumerate(sizes)]
        rebuild.append(LayersCase(layers, {"seed": seed}))
    rng = np.random.default_rng(2)
    layers = [
        split_case(rng, 0, (66, 136, 40), np.uint16),
        split_case(rng, 1, (20, 40, 24), np.float16, strided=True),
        split_case(rng, 0, (5, 40, 17), np.uint16),
    ]
    rebuild.append(LayersCase(layers, {"seed": 1}))
    return {"sim_atoms.cpp": atoms, "sim_rebuild.cpp": rebuild}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
