"""Every bug planted in the tiles of experts and in the order with the launch before is caught."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from grouped_problems import grouped_problem
from quantize_problems import GroupSumsCase, QuantizeCase
from sim.mutants.int4fp8.grouped import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sim_problems import COOPERATIVE_INSTANCES, INSTANCES, GemmCase, Shape, exact_problem

SMALL = INSTANCES[-3]  # 8 tokens, rings of 2 stages
SMALL_TILES = COOPERATIVE_INSTANCES[-2]  # 32 tokens


class WrongOffsetsCase(GemmCase):
    """Nothing may be touched that is not there; the values are unspecified."""

    def run(self) -> tuple[list[Any], bool]:
        return super().run()[0], True


def grouped_case(rng: np.random.Generator, counts: tuple[int, ...], **arguments: Any) -> GemmCase:
    problem = grouped_problem(exact_problem, rng, Shape(0, 71, 128 * 5, 128), counts, np.int64)
    for expert in problem.experts:
        expert.bias = rng.integers(-64, 65, 71).astype(np.float32)
    problem.bias = np.stack([expert.bias for expert in problem.experts])
    return GemmCase(problem, problem.packed(), arguments)


def make_cases() -> Cases:
    """Experts without tokens, with one, a tile and more; also more experts than lanes."""
    cases: Cases = {
        "sim_int4fp8.cpp": [],
        "sim_cooperative.cpp": [],
        "sim_quantize.cpp": [],
    }
    many = tuple(i % 2 for i in range(40))
    for seed, (split, timing) in enumerate(itertools.product((1, 2), ("random", "lazy"))):
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"seed": seed, "timing": timing}
        decode = {"instance": SMALL, "split": split, "clusters": 3, **options}
        few = grouped_case(rng, (0, 9, 0, 1, 8, 0), **decode)
        wrong = WrongOffsetsCase(**vars(few))
        wrong.problem = dataclasses.replace(
            few.problem, expert_offsets=np.array([5, -3, 2, 900, 900, 900, -(2**40)])
        )
        one = exact_problem(rng, Shape(5, 71, 128 * 5, 128))
        one.bias = np.arange(71, dtype=np.float32)
        late = GemmCase(one, one.packed(), {**decode, "prefetch_weight": False})
        cases["sim_int4fp8.cpp"] += [few, grouped_case(rng, many, **decode), wrong, late]
        tiles = {"instance": SMALL_TILES, "clusters": 1 + split, **options}
        cases["sim_cooperative.cpp"].append(grouped_case(rng, (0, 65, 0, 3), **tiles))
        rows = rng.standard_normal((3, 300)).astype(np.float32)
        codes = rng.integers(0, 127, (5, 1120)).astype(np.uint8)
        cases["sim_quantize.cpp"] += [
            QuantizeCase(rows, options),
            GroupSumsCase(codes, 5, options),
        ]
    return cases


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
