"""Every bug planted in the kernels of the rebuild family is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from rebuild_problems import draw_layer, split_case
from sim.mutants.rebuild import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sim_atoms import DISTS, ExpandCase, LayersCase, ProjectCase


def make_cases() -> Cases:
    """Several layers, bases and tiles each, tails everywhere."""
    options = {"seed": 1, "preempt_every": 300}
    rebuild: list[Any] = [
        *(ExpandCase(dist, 9, 5003, {"seed": 1}) for dist in DISTS),
        *(ProjectCase(dist, 10, 4101, options, parts=2) for dist in DISTS),
        ProjectCase("sign", 10, 4101, options),
    ]
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
    return {"sim_rebuild.cpp": rebuild}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
