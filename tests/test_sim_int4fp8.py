"""The Hopper kernels of int4fp8 in the simulator: values, determinism, and no finding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from sim_numbers import rounded
from sim_problems import (
    INSTANCES,
    Instance,
    Shape,
    decode,
    decode_report,
    exact_problem,
    group_sizes,
    random_problem,
    without_signed_zero,
)

SMALL, SMALL_ZEROS, THREE = INSTANCES[-3:]  # rings of 2, 2 and 3 stages
OUT_TYPES = (np.float32, np.float16, np.uint16)


class Case(NamedTuple):
    instance: Instance
    shape: Shape
    split: int
    clusters: int
    options: dict[str, Any]


def draw_case(rng: np.random.Generator, instance: Instance) -> Case:
    """Tails in every dimension, 1 to 9 k tiles, more and fewer items than clusters."""
    tokens = instance.tokens
    split = int(rng.choice([1, 1, 1, 2, 2, 4, 8] if tokens < 64 else [1, 1, 2, 4]))
    k = 32 * int(rng.integers(1, 37 if split < 8 else 73))
    if instance.groups_per_tile > 1:  # several groups, which would else count as one of all k
        group_size = 128 // instance.groups_per_tile
        k = (k // group_size + 2) * group_size
    group_size = int(rng.choice(group_sizes(instance, k)))
    m = int(rng.integers(1, 2 * tokens if tokens < 32 else tokens + 1))
    n = int(rng.choice([1, 7, 8, 63, 64, 65, 72, 130, 194]))
    options = {
        "prefetch_weight": bool(m % 2),
        "seed": int(rng.integers(1 << 30)),
        "schedule": str(rng.choice(["random", "random", "round_robin"])),
        "timing": str(rng.choice(["random", "random", "eager", "lazy"])),
        "preempt_every": int(rng.choice([0, 0, 50, 1000])),
        "truncate": bool(rng.integers(2)),
    }
    shape = Shape(m, n, k, group_size, instance.zero_points)
    return Case(instance, shape, split, int(rng.integers(1, 4)), options)


def check_exact(rng, case, out):
    problem = exact_problem(rng, case.shape)
    y, findings = decode(problem, case.instance, case.split, case.clusters, out, **case.options)
    assert findings == []
    expected = without_signed_zero(rounded(problem.reference(), out))
    np.testing.assert_array_equal(without_signed_zero(y), expected)


@pytest.mark.parametrize("seed", range(90))
def test_exact_problems_match_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    case = draw_case(rng, INSTANCES[rng.integers(len(INSTANCES))])
    check_exact(rng, case, OUT_TYPES[seed % 3])


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_every_instance(instance):
    rng = np.random.default_rng(instance.tokens)
    check_exact(rng, draw_case(rng, instance), np.float32)


@pytest.mark.parametrize("split", [1, 2, 4, 8])
@pytest.mark.parametrize("k", [32, 160, 640, 1184])
def test_clusters_split_ragged_k(k, split):
    """Also CTAs without a tile, and one more tile for some than for others."""
    rng = np.random.default_rng(k + split)
    options = {"seed": k, "timing": "random"}
    check_exact(rng, Case(SMALL, Shape(5, 72, k, k), split, 1, options), np.float32)


@pytest.mark.parametrize("split", [1, 2])
def test_many_passes_over_the_rings_and_many_items(split):
    """22 tiles in rings of 2 stages for 5 passes an item and warpgroup; 9 items for 2 clusters."""
    shape = Shape(20, 190, 128 * 22, 128)
    for timing in ("random", "lazy"):
        case = Case(SMALL, shape, split, 2, {"seed": split, "timing": timing})
        check_exact(np.random.default_rng(5), case, np.float32)


@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize(
    ("k_tiles", "split", "m", "once"),
    [(3, 1, 5, True), (4, 1, 8, True), (5, 1, 8, False), (3, 1, 9, False), (7, 2, 5, True),
     (8, 2, 8, True), (9, 2, 8, False), (8, 2, 9, False), (13, 4, 1, True)],
)  # fmt: skip
def test_activations_that_fit_are_fetched_once(k_tiles, split, m, once, clusters):
    """They fit if a CTA's share of K is no more than 2 rings of 2 stages, and serve 8 tokens."""
    problem = exact_problem(np.random.default_rng(k_tiles), Shape(m, 300, 128 * k_tiles, 128))
    for timing in ("random", "lazy"):
        y, report = decode_report(problem, SMALL, split, clusters, seed=m, timing=timing)
        assert report.findings == []
        np.testing.assert_array_equal(y, problem.reference())
        weights = 5 * -(-m // 8) * k_tiles
        assert report.copies == weights + (clusters * k_tiles if once else weights)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_random_problems_stay_within_the_bound(seed, truncate):
    rng = np.random.default_rng(1000 + seed)
    case = draw_case(rng, INSTANCES[rng.integers(len(INSTANCES))])
    problem = random_problem(rng, case.shape)
    options = {**case.options, "truncate": truncate}
    y, findings = decode(problem, case.instance, case.split, case.clusters, **options)
    assert findings == []
    # At most 128 roundings in FP32 on the way of any term (32 in a wgmma, 8 wgmmas a group, 36
    # groups, 32 sources). Truncating, each of 8 wgmmas cuts 33 addends at 2^-13 of the largest.
    relative = 8 * 33 * 2.0**-13 if truncate else 128 * 2.0**-24
    error = np.abs(y - problem.reference())
    assert np.all(error <= relative * problem.magnitude())
    # And what such errors amount to if they are not all alike.
    typical = np.linalg.norm(error) / np.linalg.norm(problem.magnitude())
    assert typical < (2.0**-12 if truncate else 2.0**-23)


@pytest.mark.parametrize(("index", "split"), [(0, 2), (9, 1), (14, 4), (23, 1)])
def test_result_does_not_depend_on_the_schedule(index, split):
    instance = INSTANCES[index]
    rng = np.random.default_rng(7)
    group_size = 128 // instance.groups_per_tile
    shape = Shape(min(instance.tokens, 21), 72, 640, group_size, instance.zero_points)
    problem = random_problem(rng, shape)
    packed = problem.packed()
    results = set()
    for seed, timing in ((1, "random"), (2, "lazy"), (3, "eager"), (4, "random")):
        y, findings = decode(
            problem, instance, split, 1, packed=packed, seed=seed, timing=timing, preempt_every=200
        )
        assert findings == []
        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("split", [1, 4])
def test_rows_do_not_depend_on_the_batch_within_a_token_tile(split):
    instance = INSTANCES[6]  # 16 tokens
    problem = random_problem(np.random.default_rng(3), Shape(13, 72, 640, 128))
    whole = decode(problem, instance, split).y
    problem.shape = problem.shape._replace(m=1)
    problem.x, problem.x_scale = problem.x[4:5].copy(), problem.x_scale[4:5].copy()
    np.testing.assert_array_equal(whole[4:5], decode(problem, instance, split).y)


@pytest.mark.parametrize("where", ["x", "x_scale", "scale", "channel_scale", "bias"])
def test_nan_spreads_to_what_depends_on_it_and_no_further(where):
    rng = np.random.default_rng(9)
    problem = exact_problem(rng, Shape(5, 70, 256, 128))
    problem.bias = np.zeros(70, np.float32)
    clean = decode(problem, SMALL, 2).y
    reached = np.zeros((5, 70), bool)
    if where == "x":
        problem.x[2, 17] = 0x7F
        reached[2, :] = True
    elif where == "x_scale":
        problem.x_scale[2] = np.nan
        reached[2, :] = True
    else:
        getattr(problem, where)[66] = np.nan
        reached[:, 66] = True
    y, findings = decode(problem, SMALL, 2)
    assert findings == []
    np.testing.assert_array_equal(np.isnan(y), reached)
    np.testing.assert_array_equal(y[~reached], clean[~reached])


def test_rows_of_x_may_be_strided():
    problem = exact_problem(np.random.default_rng(2), Shape(5, 64, 160, 160))
    wide = np.full((5, 176), 0x7F, np.uint8)
    wide[:, :160] = problem.x
    problem.x = wide[:, :160]
    y, findings = decode(problem, SMALL)
    assert findings == []
    np.testing.assert_array_equal(y, problem.reference())
