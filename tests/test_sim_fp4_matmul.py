"""The kernels of fp4_matmul in the simulator: values, determinism, and no finding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fp4_matmul_problems import MatmulCase, Operand, carrier, draw_codes, mxfp4, nvfp4, packed

OUT_TYPES = (np.float32, np.float16, np.uint16)
KINDS = ("e4m3 e4m3", "e4m3 e5m2", "e5m2 e4m3", "e5m2 e5m2", "fold8", "bf16", "nvfp4", "mixed")


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "seed": int(rng.integers(1 << 30)),
        "schedule": str(rng.choice(["random", "random", "round_robin"])),
        "timing": str(rng.choice(["random", "random", "eager", "lazy"])),
        "preempt_every": int(rng.choice([0, 0, 200])),
        "truncate": bool(rng.integers(2)),
    }


def draw_case(
    rng: np.random.Generator, kind: str, m: int, n: int, k: int, exact: bool = True, **more: Any
) -> MatmulCase:
    if kind.startswith("e"):
        a, b = (
            carrier(rng, rows, k, word == "e5m2", exact)
            for rows, word in zip((m, n), kind.split(), strict=True)
        )
        return MatmulCase(a, b, "fold8", **more)
    makers = {"nvfp4": (nvfp4, nvfp4), "mixed": (mxfp4, nvfp4)}.get(kind, (mxfp4, mxfp4))
    a, b = (make(rng, rows, k, exact=exact) for make, rows in zip(makers, (m, n), strict=True))
    return MatmulCase(a, b, "fold8" if kind == "fold8" else "bf16", **more)


def check_exact(case: MatmulCase) -> None:
    findings, right = case.run()
    assert findings == []
    assert right


@pytest.mark.parametrize("seed", range(24))
def test_exact_problems_match_bit_for_bit(seed: int) -> None:
    """Tails in every dimension, from less than one tile of y to a few, up to 6 stages of K."""
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 300)), int(rng.choice([1, 7, 64, 127, 128, 129, 200, 300]))
    k = 32 * int(rng.integers(1, 24))
    case = draw_case(rng, KINDS[seed % 8], m, n, k, ctas=int(rng.integers(1, 4)))
    case.out, case.options = OUT_TYPES[seed % 3], draw_options(rng)
    check_exact(case)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tiles_of_the_library(kind: str) -> None:
    """More than one tile, more stages than the ring has."""
    rng = np.random.default_rng(1)
    case = draw_case(rng, kind, 140, 270, 704, instance=0, ctas=2)
    case.options = draw_options(rng)
    check_exact(case)


@pytest.mark.parametrize("timing", ["random", "lazy", "eager"])
@pytest.mark.parametrize("kind", ["e4m3 e5m2", "fold8", "nvfp4"])
def test_many_passes_over_the_ring(kind: str, timing: str) -> None:
    rng = np.random.default_rng(2)
    options = {"timing": timing, "seed": 3}
    check_exact(draw_case(rng, kind, 150, 150, 128 * 9, ctas=2, options=options))


def test_more_row_tiles_than_a_band() -> None:
    """17 row tiles of packed codes: the last band holds one."""
    rng = np.random.default_rng(4)
    check_exact(draw_case(rng, "fold8", 16 * 128 + 5, 130, 64, ctas=3))


@pytest.mark.parametrize("kind", ["e4m3 e4m3", "fold8"])
def test_no_columns_of_k_give_zeros(kind: str) -> None:
    rng = np.random.default_rng(4)
    check_exact(draw_case(rng, kind, 3, 5, 0))


def opposite_scales(rng: np.random.Generator, spread: int) -> MatmulCase:
    """Blocks of a and b whose scales cancel: every product counts as much as any other."""
    sides = []
    exponents = rng.integers(-spread, 1, 12)
    exponents[[0, 5]] = -spread, 0
    for sign, rows in ((1, 130), (-1, 140)):
        codes = draw_codes(rng, rows, 384, exact=False)
        sides.append(packed(codes, np.tile(127 + sign * exponents, (rows, 1)), None))
    return MatmulCase(*sides)


@pytest.mark.parametrize(("spread", "wgmmas"), [(26, 1), (27, 2), (100, 2)])
def test_scales_beyond_a_carrier_go_to_bf16(spread: int, wgmmas: int) -> None:
    """27 binades fit. BF16 takes twice the wgmmas."""
    case = opposite_scales(np.random.default_rng(spread), spread)
    y, report = case.launch()
    assert report.findings == []
    assert case.is_right(y)
    assert report.wgmmas == wgmmas * 4 * 2 * (2 * 2) * 2 * 3  # steps, parts, tiles, consumers, K


@pytest.mark.parametrize("side", [0, 1])
def test_one_wide_row_is_enough(side: int) -> None:
    rng = np.random.default_rng(side)
    sides = [mxfp4(rng, rows, 256) for rows in (300, 140)]
    sides[side].arrays["scales"][-1, 3] = 60
    y, report = (case := MatmulCase(*sides)).launch()
    assert report.findings == []
    assert np.allclose(y, case.reference(), rtol=1e-6, atol=0)
    assert report.wgmmas == 2 * 4 * 2 * (3 * 2) * 2 * 2


def test_blocks_of_zeros_may_have_any_scale() -> None:
    """As the quantiser gives them the smallest one."""
    rng = np.random.default_rng(5)
    case = draw_case(rng, "fold8", 20, 30, 256)
    for side in (case.a, case.b):
        side.arrays["scales"][:, 1] = 0
        side.arrays["codes"][:, 16:32] = rng.choice([0, 8, 128], (len(side.values()), 16))
    y, report = case.launch()
    assert report.findings == []
    assert case.is_right(y)
    assert report.wgmmas == 4 * 2 * 2 * 2  # FP8's


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncate", [False, True])
def test_random_problems_stay_within_the_bound(kind: str, truncate: bool) -> None:
    rng = np.random.default_rng(6)
    case = draw_case(rng, kind, 70, 90, 608, exact=False, options={"truncate": truncate})
    y, report = case.launch()
    assert report.findings == []
    # At most 64 roundings in FP32 on the way of any term (32 in a wgmma, 4 wgmmas a stage, 10
    # stages, 3 scales). Truncating, each of 4 FP8 wgmmas cuts 33 addends at 2^-13 of the largest.
    fp8 = case.mode == "fold8"
    relative = 4 * 33 * 2.0**-13 if truncate and fp8 else 64 * 2.0**-24
    assert np.all(np.abs(y - case.reference()) <= relative * case.magnitude())


@pytest.mark.parametrize("kind", ["e4m3 e5m2", "fold8", "bf16"])
def test_result_does_not_depend_on_the_schedule_or_the_tile(kind: str) -> None:
    case = draw_case(np.random.default_rng(7), kind, 70, 150, 640, exact=False)
    results = set()
    for seed, instance in itertools.product(range(2), (0, 1)):
        case.instance, case.ctas, case.options = instance, 1 + seed, {"seed": seed}
        y, report = case.launch()
        assert report.findings == []
        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("kind", ["e4m3 e5m2", "fold8", "bf16", "nvfp4"])
def test_nan_spreads_to_what_depends_on_it_and_no_further(kind: str) -> None:
    case = draw_case(np.random.default_rng(8), kind, 66, 70, 256)
    clean, _ = case.launch()

    def poison(side: Operand, row: int) -> None:
        if "carrier" in side.arrays:
            side.arrays["carrier"][row, 17] = 0x7F
        else:
            side.arrays["scales"][row, 3] = 0x7F if "global_scale" in side.arrays else 255

    poison(case.a, 65)
    poison(case.b, 3)
    y, report = case.launch()
    assert report.findings == []
    reached = np.zeros(clean.shape, bool)
    reached[65, :] = reached[:, 3] = True
    np.testing.assert_array_equal(np.isnan(y), reached)
    np.testing.assert_array_equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("out", OUT_TYPES)
def test_exact32_matches_the_cpu_bit_for_bit(out: type[np.generic]) -> None:
    """Any scales but those of overflows: sums in order of K, rounded alike."""
    import torch

    import wlib  # noqa: F401  registers the ops

    rng = np.random.default_rng(9)
    sides = [mxfp4(rng, rows, 320, spread=6, exact=False) for rows in (33, 41)]
    y, report = MatmulCase(*sides, "exact32", out=out, ctas=2).launch()
    assert report.findings == []
    tensors = [torch.from_numpy(s.arrays[key]) for s in sides for key in ("codes", "scales")]
    names = {np.float32: torch.float32, np.float16: torch.float16, np.uint16: torch.bfloat16}
    expected = torch.ops.wlib.fp4_matmul(*tensors, alpha=0.75, mode="exact32", out_dtype=names[out])
    bits = torch.int32 if out is np.float32 else torch.int16
    np.testing.assert_array_equal(y.view(f"i{y.itemsize}"), expected.view(bits).numpy())
