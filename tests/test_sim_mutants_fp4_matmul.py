"""Every bug planted in the kernels of fp4_matmul is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from fp4_matmul_problems import MatmulCase, carrier, mxfp4, nvfp4
from sim.mutants.fp4_matmul import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases


def make_cases() -> Cases:
    """Two tiles or more, odd sizes, more than twice round the rings of two stages."""
    cases: list[Any] = []
    for seed, timing in enumerate(("random", "lazy")):
        rng = np.random.default_rng(seed)
        more: dict[str, Any] = {"ctas": 1 + seed % 2, "options": {"seed": seed, "timing": timing}}
        unfolded = mxfp4(rng, 131, 640)
        if seed == 0:
            unfolded.arrays["scales"][:, 3] -= 60
        else:
            unfolded.arrays["scales"][130, 3] = 255  # NaN
        cases += [
            MatmulCase(carrier(rng, 130, 640, False), carrier(rng, 135, 640, True), **more),
            MatmulCase(mxfp4(rng, 130, 640), mxfp4(rng, 135, 640), **more),
            MatmulCase(mxfp4(rng, 130, 320), nvfp4(rng, 135, 320), "bf16", **more),
            MatmulCase(one_block(unfolded, 3), one_block(mxfp4(rng, 135, 640), 3), **more),
        ]
    return {"sim_fp4_matmul.cpp": cases}


def one_block(q: Any, block: int) -> Any:
    """Zeros but for one block and one code, so that wide scales leave sums exact."""
    codes = q.arrays["codes"]
    kept = codes[:, block * 16 : block * 16 + 16].copy()
    codes[:] = 0
    codes[:, block * 16 : block * 16 + 16] = kept
    return q


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
