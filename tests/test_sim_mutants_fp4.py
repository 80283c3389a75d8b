"""Every bug planted in the quantiser of FP4 is caught, by the check we expect."""

from __future__ import annotations

import numpy as np

from fp4_problems import HadamardCase, QuantizeCase, draw, packed, random_signs, several_strips
from sim.mutants.fp4 import MUTANTS
from sim.planted_bugs import PlantedBugs
from sim.planting import Cases


def make_cases() -> Cases:
    """Every pass, side and rounding, with tails in both directions."""
    cases: list[QuantizeCase | HadamardCase] = []
    nv = {"format": "nvfp4", "scale_rule": "amax"}
    for seed, timing in enumerate(("random", "lazy")):
        rng = np.random.default_rng(seed)
        options = {"seed": seed, "timing": timing, "preempt_every": 50 * seed}
        signs = random_signs(rng, 128)
        wide = {"hadamard": 128, "signs": signs}
        ragged = draw(rng, np.uint16, 37, 288, spread=30)
        near = draw(rng, np.uint16, 64, 160, spread=3)  # no scale below a window
        near[5, 40] = 0x7FC0  # NaN
        near[:, 96:128] = 0
        square = draw(rng, np.float32, 160, 160, spread=3)
        columns = draw(rng, np.float32, 32, 35)
        cases += [
            QuantizeCase([ragged], {"carrier": "e4m3", "swizzle": True}, options),
            QuantizeCase([square], {**nv, "swizzle": True, "hadamard": 16}, options, "both"),
            QuantizeCase([square], {**nv, "square": True}, options),
            QuantizeCase([draw(rng, np.uint16, 128, 128)], {**nv, "hadamard": 16}, options),
            QuantizeCase([columns], {"hadamard": 32}, options, "columns"),
            QuantizeCase([draw(rng, np.uint16, 9, 128)], wide, options),
            QuantizeCase([square[:, :64]], {**nv, "rounding": "stochastic",
                                            "seed": np.array(1)}, options),
            QuantizeCase([square[:, :64]], {**nv, "rounding": "ms_eden",
                                            "seed": np.array(1)}, options),
            QuantizeCase(packed(rng, 96, 64), {"carrier": "e5m2"}, options, "columns"),
            HadamardCase(draw(rng, np.uint16, 40, 128), 128, options, signs),
            QuantizeCase([draw(rng, np.uint16, 128, 128)], {"hadamard": 32, "mask": True},
                         options),
            QuantizeCase([draw(rng, np.uint16, 128, 128, spread=20)],
                         {**wide, "carrier": "e4m3", "swizzle": True}, options),
            QuantizeCase(packed(rng, 128, 128, "nvfp4"), wide, options, "columns"),
            QuantizeCase(packed(rng, 128, 128), {**wide, "scale_rule": "floor"}, options,
                         "columns"),
            QuantizeCase([draw(rng, np.uint16, 128, 132)[:, :128]], wide, options),
            QuantizeCase([draw(rng, np.float16, 128, 128)], {"hadamard": 64}, options),
            QuantizeCase([draw(rng, np.uint16, 128, 256, spread=20)],
                         {**wide, "carrier": "e4m3", "packed": False}, options, "rows"),
            QuantizeCase([np.full((8, 32), -0.0, np.float32)], {"hadamard": 32}, options),
            QuantizeCase([near], {"carrier": "e4m3", "hadamard": 32}, options, "both"),
            QuantizeCase([near[:, :128]], {"carrier": "e5m2", "packed": False, "hadamard": 64,
                                           "signs": signs[:64], "scale_rule": "floor"}, options),
            QuantizeCase([draw(rng, np.float16, 128, 40)], {**wide, "scale_rule": "quest"},
                         options, "columns"),
            QuantizeCase([several_strips(rng, 128, 640)], {"carrier": "e4m3", "hadamard": 32},
                         options, "both"),
            QuantizeCase([several_strips(rng, 128, 608)], {"carrier": "e5m2", "swizzle": True},
                         options),
            QuantizeCase(packed(rng, 128, 64, scale=64), {**wide, "carrier": "e4m3"},
                         options, "columns"),
        ]  # fmt: skip
    return {"sim_fp4.cpp": cases}


class TestPlantedBugs(PlantedBugs):
    mutants = MUTANTS
    make_cases = staticmethod(make_cases)
