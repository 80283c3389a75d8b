"""The int4fp8 kernels on a stack of experts in the simulator: values, determinism, no finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grouped_problems import GroupedProblem, grouped_problem
from sim_numbers import rounded, to_bf16
from sim_problems import (
    COOPERATIVE_INSTANCES,
    INSTANCES,
    CooperativeInstance,
    Epilogue,
    Instance,
    Shape,
    cooperative,
    decode,
    exact_problem,
    group_sizes,
    random_problem,
    without_signed_zero,
)

SMALL, SMALL_ZEROS, THREE = INSTANCES[-3:]
SMALL_TILES, SMALL_TILES_ZEROS = COOPERATIVE_INSTANCES[-2:]
OUT_TYPES = (np.float32, np.float16, np.uint16)
COUNTS: dict[str, tuple[int, ...]] = {
    "none, one, around a tile": (0, 1, 63, 64, 65, 0),
    "all in one": (0, 0, 70, 0),
    "one expert": (13,),
    "more experts than lanes": (*(i % 3 for i in range(40)), 9),
    "all lanes": (1,) * 64,
    "last one only": (*(0,) * 33, 3),
}


def solve(problem: GroupedProblem, instance: Instance | CooperativeInstance, **options: Any) -> Any:
    """Run the kernel of the instance; three clusters or CTAs share the tiles."""
    if isinstance(instance, Instance):
        return decode(problem, instance, options.pop("split", 1), 3, **options)
    options.pop("split", None)
    return cooperative(problem, instance, 3, **options)


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "seed": int(rng.integers(1 << 30)),
        "schedule": str(rng.choice(["random", "random", "round_robin"])),
        "timing": str(rng.choice(["random", "random", "eager", "lazy"])),
        "preempt_every": int(rng.choice([0, 0, 200])),
        "truncate": bool(rng.integers(2)),
    }


def draw_shape(rng: np.random.Generator, instance: Instance | CooperativeInstance) -> Shape:
    k = 32 * int(rng.integers(1, 14))
    if instance.groups_per_tile > 1:
        group_size = 128 // instance.groups_per_tile
        k = (k // group_size + 2) * group_size
    size = int(rng.choice(group_sizes(instance, k)))
    return Shape(0, int(rng.choice([1, 63, 65, 72, 130])), k, size, bool(instance.zero_points))


def check_exact(problem: GroupedProblem, instance: Any, out: Any, **options: Any) -> None:
    y, findings = solve(problem, instance, out=out, **options)
    assert findings == []
    expected = without_signed_zero(rounded(problem.reference(), out))
    np.testing.assert_array_equal(without_signed_zero(y), expected)


@pytest.mark.parametrize("offsets", [np.int32, np.int64])
@pytest.mark.parametrize("instance", [SMALL, SMALL_TILES], ids=str)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_exact_problems_match_bit_for_bit(counts, instance, offsets):
    rng = np.random.default_rng(sum(counts))
    problem = grouped_problem(exact_problem, rng, draw_shape(rng, instance), counts, offsets)
    check_exact(problem, instance, np.float32, split=2, **draw_options(rng))


@pytest.mark.parametrize("seed", range(24))
def test_random_routing_matches_bit_for_bit(seed):
    """Any number of experts and tokens, empty experts among them; every small instance."""
    rng = np.random.default_rng(seed)
    instance = (SMALL, SMALL_ZEROS, THREE, SMALL_TILES, SMALL_TILES_ZEROS)[seed % 5]
    experts = int(rng.integers(1, 6))
    counts = [int(rng.integers(0, 1 + rng.integers(1, 30))) for _ in range(experts)]
    counts[0] += sum(counts) == 0
    problem = grouped_problem(exact_problem, rng, draw_shape(rng, instance), counts)
    split = int(rng.choice([1, 2, 4]))
    check_exact(problem, instance, OUT_TYPES[seed % 3], split=split, **draw_options(rng))


@pytest.mark.parametrize("instance", [*INSTANCES[:-3:5], *COOPERATIVE_INSTANCES[:-2:5]], ids=str)
def test_instances_of_the_library(instance):
    """They share all of what looks up tiles; every instance runs in the tests of one weight."""
    rng = np.random.default_rng(instance.tokens)
    counts = (0, instance.tokens + 1, 3)
    problem = grouped_problem(exact_problem, rng, draw_shape(rng, instance), counts)
    check_exact(problem, instance, np.float32, **draw_options(rng))


@pytest.mark.parametrize("instance", [SMALL, SMALL_TILES], ids=str)
def test_epilogues(instance):
    """Gates with the residual in place, and FP8 outputs."""
    rng = np.random.default_rng(3)
    counts, shape = (5, 0, 9), Shape(0, 70, 256, 128)
    gated = grouped_problem(exact_problem, rng, shape, counts)
    y = rng.integers(-8, 9, (14, 35)).astype(np.float32)
    gated.epilogue = Epilogue(True, y, in_place=True)
    scaled = grouped_problem(exact_problem, rng, shape, counts)
    residual = to_bf16(rng.integers(-8, 9, (14, 70)))
    scaled.epilogue = Epilogue(False, residual, out_scale=np.float32(0.125))
    for problem, out in ((gated, np.float32), (scaled, np.uint8)):
        result, findings = solve(problem, instance, out=out)
        assert findings == []
        assert problem.is_right(result)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("instance", [SMALL_ZEROS, SMALL_TILES_ZEROS], ids=str)
def test_random_problems_stay_within_the_bound(instance, truncate):
    rng = np.random.default_rng(5)
    shape = Shape(0, 72, 640, 64, True)
    problem = grouped_problem(random_problem, rng, shape, (3, 0, 17, 40))
    problem.bias = None
    for expert in problem.experts:
        expert.bias = None
    y, findings = solve(problem, instance, **{**draw_options(rng), "truncate": truncate})
    assert findings == []
    # As for one weight: 128 roundings; truncating, each of 8 wgmmas cuts 33 addends at 2^-13.
    relative = 8 * 33 * 2.0**-13 if truncate else 128 * 2.0**-24
    assert np.all(np.abs(y - problem.reference()) <= relative * problem.magnitude())


@pytest.mark.parametrize("instance", [THREE, SMALL_TILES_ZEROS], ids=str)
def test_result_does_not_depend_on_the_schedule(instance):
    group_size = 128 // instance.groups_per_tile
    shape = Shape(0, 130, 640, group_size, bool(instance.zero_points))
    problem = grouped_problem(random_problem, np.random.default_rng(7), shape, (9, 0, 30, 1))
    results = set()
    for seed, timing in ((1, "random"), (2, "lazy"), (3, "eager")):
        y, findings = solve(problem, instance, seed=seed, timing=timing, preempt_every=200)
        assert findings == []
        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("instance", [SMALL, SMALL_TILES], ids=str)
def test_a_row_does_not_depend_on_where_the_others_go(instance):
    """The last token stays with the last expert; the other 79 are dealt out in three ways."""
    rng = np.random.default_rng(8)
    problem = grouped_problem(random_problem, rng, Shape(0, 72, 640, 128), (30, 20, 0, 30))
    last = problem.experts[-1]
    rows = set()
    for offsets in ([0, 30, 50, 50, 80], [0, 0, 79, 79, 80], [0, 0, 0, 0, 80]):
        problem.expert_offsets = np.array(offsets, np.int32)
        y, findings = solve(problem, instance)
        assert findings == []
        rows.add(y[-1].tobytes())
    assert len(rows) == 1
    assert np.all(np.isfinite(y))
    assert np.allclose(y[-1], last.reference()[-1], rtol=1e-3, atol=1e-5 * last.magnitude().max())


@pytest.mark.parametrize("instance", [SMALL, SMALL_TILES], ids=str)
def test_an_expert_with_nan_and_the_token_beyond_its_end(instance):
    """A tile reads the next expert's tokens, too; no NaN of one expert reaches the other's rows."""
    rng = np.random.default_rng(9)
    problem = grouped_problem(exact_problem, rng, Shape(0, 72, 256, 128), (5, 3))
    problem.experts[0].scale[:] = np.nan
    problem.x[5, 17] = 0x7F
    y, findings = solve(problem, instance)
    assert findings == []
    assert np.all(np.isnan(y[:6]))
    np.testing.assert_array_equal(y[6:], problem.reference()[6:])


@pytest.mark.parametrize("instance", [SMALL, SMALL_TILES], ids=str)
@pytest.mark.parametrize("offsets", [[5, -3, 2, 900], [0, 0, 0, 0], [-(2**40), 3, 3, 2**40]])
def test_wrong_offsets_lead_nowhere(offsets, instance):
    """Unspecified values, or none; but nothing outside is touched and nothing hangs."""
    rng = np.random.default_rng(10)
    problem = grouped_problem(exact_problem, rng, Shape(0, 72, 256, 128), (5, 3, 9))
    problem.expert_offsets = np.array(offsets, np.int64)
    assert solve(problem, instance).findings == []
