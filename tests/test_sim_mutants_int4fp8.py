"""Every bug planted in the int4fp8 kernels is caught, by the check we expect."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from quantize_problems import FusedCase, GroupSumsCase, QuantizeCase
from sim.mutants.int4fp8 import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases
from sim_numbers import to_bf16
from sim_problems import (
    COOPERATIVE_INSTANCES,
    INSTANCES,
    Epilogue,
    GemmCase,
    Shape,
    exact_problem,
)

SMALL, SMALL_ZEROS, _ = INSTANCES[-3:]


def gemm_case(
    rng: np.random.Generator, shape: Shape, epilogue: Epilogue | None = None, **arguments: Any
) -> GemmCase:
    problem = exact_problem(rng, shape)
    problem.bias = np.arange(shape.n, dtype=np.float32)
    problem.epilogue = epilogue or Epilogue()
    return GemmCase(problem, problem.packed(), arguments)


def fused_cases(rng: np.random.Generator, options: dict[str, Any]) -> list[FusedCase]:
    """CTAs of several rows, padding, tails, rows that lie apart, and a row without a scale."""

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    two_rows = to_bf16(draw(5, 2176))
    residual = to_bf16(draw(5, 2200))
    weight = to_bf16(draw(2176))
    zeros = np.stack((np.zeros(36, np.float32), np.full(36, 1e-30, np.float32)))
    return [
        FusedCase(two_rows, options, weight, residual, sums_group=64),
        FusedCase(draw(3, 192), options, interleaved=True, sums_group=32),
        FusedCase(zeros, options),
        FusedCase(zeros, options, np.ones(36, np.float32), zeros, eps=0.0),
    ]


def make_cases() -> Cases:
    """Two items or more per cluster or CTA, tails everywhere, more than twice round the rings."""
    cases: Cases = {"sim_int4fp8.cpp": [], "sim_cooperative.cpp": [], "sim_quantize.cpp": []}
    for seed, (split, timing) in enumerate(itertools.product((1, 2), ("random", "lazy", "eager"))):
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"seed": seed, "timing": timing}
        for instance, group_size in ((SMALL, 128), (SMALL_ZEROS, 64)):
            shape = Shape(13, 71, 128 * 9, group_size, bool(instance.zero_points))
            case = gemm_case(rng, shape, instance=instance, split=split, **options)
            cases["sim_int4fp8.cpp"].append(case)
        for tokens, tiles in ((5, 3), (13, 3), (5, 9)):  # only the first fits into the rings
            shape = Shape(tokens, 135, 128 * tiles, 128)
            case = gemm_case(rng, shape, instance=SMALL, split=split, **options)
            cases["sim_int4fp8.cpp"].append(case)
        cases["sim_int4fp8.cpp"] += epilogue_cases(rng, split, options)
        rows = rng.standard_normal((3, 4097)).astype(np.float32)
        cases["sim_quantize.cpp"].append(QuantizeCase(rows, options))
        cases["sim_quantize.cpp"] += fused_cases(rng, options)
        codes = rng.integers(0, 127, (5, 1120)).astype(np.uint8)
        cases["sim_quantize.cpp"] += [GroupSumsCase(codes, log2, options) for log2 in (5, 7)]
        for small, group_size in zip(COOPERATIVE_INSTANCES[-2:], (128, 64), strict=True):
            rows = 135 if small.rows == 128 else 391  # the second CTA of a pair has some
            shape = Shape(70, rows, 128 * 5, group_size, bool(small.zero_points))
            case = gemm_case(rng, shape, instance=small, clusters=split, **options)
            cases["sim_cooperative.cpp"].append(case)
    return cases


def epilogue_cases(
    rng: np.random.Generator, split: int, options: dict[str, Any]
) -> list[GemmCase | QuantizeCase]:
    """Gates with the residual in place, and FP8 outputs."""
    gated, scaled = Shape(13, 70, 256, 128), Shape(13, 71, 256, 128)
    y = rng.integers(-8, 9, (13, 35)).astype(np.float32)
    residual = to_bf16(rng.integers(-8, 9, (13, 71)))
    eighth = np.float32(0.125)
    return [
        gemm_case(
            rng, gated, Epilogue(True, y, in_place=True), instance=SMALL, split=split, **options
        ),
        gemm_case(
            rng,
            scaled,
            Epilogue(False, residual, out_scale=eighth),
            instance=SMALL,
            split=split,
            out=np.uint8,
            **options,
        ),
    ]


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
