"""The cooperative kernel of int4fp8 in the simulator: values, determinism, and no finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim_numbers import rounded
from sim_problems import (
    COOPERATIVE_INSTANCES,
    CooperativeInstance,
    Shape,
    cooperative,
    exact_problem,
    group_sizes,
    random_problem,
    without_signed_zero,
)

SMALL, SMALL_GROUPS = COOPERATIVE_INSTANCES[-2:]  # tiles of 32 tokens, rings of 3 and 2 stages
OUT_TYPES = (np.float32, np.float16, np.uint16)


def draw_shape(rng: np.random.Generator, instance: CooperativeInstance, tiles: int) -> Shape:
    """Tails in every dimension, from less than one tile of y to a few."""
    k = 32 * int(rng.integers(1, 4 * tiles))
    if instance.groups_per_tile > 1:  # several groups, which would else count as one of all k
        group_size = 128 // instance.groups_per_tile
        k = (k // group_size + 2) * group_size
    m = int(rng.integers(1, 2 * instance.tokens + 2))
    n = int(rng.choice([1, 7, 63, 64, 65, 130, 257, 300, 513]))
    return Shape(m, n, k, int(rng.choice(group_sizes(instance, k))), bool(instance.zero_points))


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "clusters": int(rng.integers(1, 4)),
        "seed": int(rng.integers(1 << 30)),
        "schedule": str(rng.choice(["random", "random", "round_robin"])),
        "timing": str(rng.choice(["random", "random", "eager", "lazy"])),
        "preempt_every": int(rng.choice([0, 0, 200])),
        "truncate": bool(rng.integers(2)),
    }


def check_exact(rng, instance, shape, out, **options):
    problem = exact_problem(rng, shape)
    y, findings = cooperative(problem, instance, out=out, **options)
    assert findings == []
    expected = without_signed_zero(rounded(problem.reference(), out))
    np.testing.assert_array_equal(without_signed_zero(y), expected)


@pytest.mark.parametrize("seed", range(24))
def test_exact_problems_match_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    instance = (SMALL, SMALL_GROUPS)[seed % 2]
    shape = draw_shape(rng, instance, 6)
    check_exact(rng, instance, shape, OUT_TYPES[seed % 3], **draw_options(rng))


@pytest.mark.parametrize("instance", COOPERATIVE_INSTANCES, ids=str)
def test_every_instance(instance):
    rng = np.random.default_rng(instance.rows)
    shape = draw_shape(rng, instance, 3)
    check_exact(rng, instance, shape, np.float32, **draw_options(rng))


@pytest.mark.parametrize("timing", ["random", "lazy"])
def test_many_passes_over_the_ring_and_many_tiles(timing):
    """9 k tiles in a ring of 3 stages, 10 tiles of y for 2 CTAs, whose warpgroups take turns."""
    rng = np.random.default_rng(5)
    shape = Shape(150, 250, 128 * 9, 128)
    check_exact(rng, SMALL, shape, np.float32, clusters=2, timing=timing)


@pytest.mark.parametrize("timing", ["random", "lazy", "eager"])
@pytest.mark.parametrize("n", [1, 256, 257, 1000])
def test_pairs_share_activations(n, timing):
    """None, some and all of the second CTA's rows exist; a second pair of row tiles; 5 k tiles."""
    rng = np.random.default_rng(n)
    shape = Shape(70, n, 128 * 5, 64, True)
    check_exact(rng, SMALL_GROUPS, shape, np.float32, clusters=2, timing=timing, seed=n)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("k_tiles", [1, 2, 3, 4])
def test_warpgroups_take_turns(tiles, k_tiles):
    """As many k tiles as stages, fewer and more; both warpgroups end with the last tile."""
    rng = np.random.default_rng(10 * tiles + k_tiles)
    shape = Shape(32 * tiles, 65, 128 * k_tiles, 128)
    check_exact(rng, SMALL, shape, np.float32, timing="random", preempt_every=200, seed=tiles)


def test_more_token_blocks_than_a_band():
    """17 blocks of 32 tokens: the last band holds one."""
    rng = np.random.default_rng(6)
    check_exact(rng, SMALL, Shape(17 * 32, 130, 64, 64), np.float32, clusters=3)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_problems_stay_within_the_bound(seed, truncate):
    rng = np.random.default_rng(1000 + seed)
    instance = COOPERATIVE_INSTANCES[rng.integers(len(COOPERATIVE_INSTANCES))]
    problem = random_problem(rng, draw_shape(rng, instance, 5))
    y, findings = cooperative(problem, instance, **{**draw_options(rng), "truncate": truncate})
    assert findings == []
    # At most 64 roundings in FP32 on the way of any term (32 in a wgmma, 4 wgmmas a group, 20
    # groups). Truncating, each of 4 wgmmas cuts 33 addends at 2^-13 of the largest.
    relative = 4 * 33 * 2.0**-13 if truncate else 64 * 2.0**-24
    error = np.abs(y - problem.reference())
    assert np.all(error <= relative * problem.magnitude())


@pytest.mark.parametrize(("groups", "zeros"), [(1, False), (2, True)])
def test_result_does_not_depend_on_the_schedule_or_the_tile(groups, zeros):
    """Sums are made in the same order by every instance, so M and N do not change a row's bits."""
    rng = np.random.default_rng(7)
    problem = random_problem(rng, Shape(70, 150, 640, 128 // groups, zeros))
    same = [
        i for i in COOPERATIVE_INSTANCES if i.groups_per_tile == groups and i.zero_points == zeros
    ]
    assert len(same) > 1
    results = set()
    for seed, instance in enumerate(same):
        y, findings = cooperative(problem, instance, clusters=1 + seed % 2, seed=seed)
        assert findings == []
        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("where", ["x", "scale"])
def test_nan_spreads_to_what_depends_on_it_and_no_further(where):
    problem = exact_problem(np.random.default_rng(9), Shape(66, 70, 256, 128))
    problem.bias = np.zeros(70, np.float32)
    clean = cooperative(problem, SMALL).y
    reached = np.zeros(clean.shape, bool)
    if where == "x":
        problem.x[65, 17] = 0x7F
        reached[65, :] = True
    else:
        problem.scale[66] = np.nan
        reached[:, 66] = True
    y, findings = cooperative(problem, SMALL)
    assert findings == []
    np.testing.assert_array_equal(np.isnan(y), reached)
    np.testing.assert_array_equal(y[~reached], clean[~reached])
