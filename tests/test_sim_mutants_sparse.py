"""Every bug planted in the kernels on sparse matrices is caught, by the check we expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.mutants.sparse import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sparse_problems import exact_case


def make_cases() -> Cases:
    """More values than a step or pass takes, tails, whole tiles, more items than CTAs,
    splits, an odd number of tiles."""
    cases = []
    bf16, kinds = np.uint16, ("forward", "transposed", "sampled")
    for kind in kinds:
        for seed, dtype in enumerate((bf16, np.float32)):
            options: dict[str, Any] = {"seed": seed, "preempt_every": 300 * seed}
            rng = np.random.default_rng(seed)
            cases.append(  # rows at 16-byte boundaries, but not whole ones
                exact_case(rng, kind, dtype, rows=141, columns=141, tokens=131, density=0.1,
                           pad=3, ctas=1, options=options)
            )  # fmt: skip
        whole: dict[str, Any] = {"rows": 264, "columns": 264, "tokens": 130, "ctas": 1}
        cases.append(exact_case(rng, kind, np.float32, **whole))
        for timing, pad, density in (("lazy", 0, 0.03), ("eager", 1, 0.1)):  # 1: no tensor copies
            options = {"timing": timing}
            cases.append(
                exact_case(rng, kind, bf16, density=density, pad=pad, options=options, **whole)
            )
    for dtype, tokens in ((np.float32, 4097), (bf16, 2049)):
        many = exact_case(rng, "sampled", dtype, rows=9, columns=5, tokens=tokens)
        many.values = many.values.astype(np.float32)  # integers beyond what 16 bits hold
        cases.append(many)
    return {"sim_sparse.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
