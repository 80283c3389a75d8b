"""The kernels of shared atoms in the simulator, against float64 and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rebuild_problems import OUT_TYPES
from sim_atoms import AtomsCase, CombineCase, ProjectCase, StepCase
from sim_problems import probe, to_bf16
from wlib.reference import atoms as reference

TIMINGS = ("random", "eager", "lazy")
# Tiles of 512 and 1024 elements: below, at and above; groups of 8, 4 and odd numbers; empty.
SHAPES = (
    ((1, 1, 1), 1),
    ((3, 7, 5), 2),
    ((4, 2, 512), 8),
    ((11, 1, 1025), 9),
    ((8, 3, 700), 17),
    ((9, 5, 33), 12),
    ((2, 0, 4), 3),
)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("shape", "layers"), SHAPES)
def test_exact_problems(
    shape: tuple[int, int, int], layers: int, resident: bool, seed: int
) -> None:
    """Both directions; types, alignment, rank, base and coefficients per row in turn."""
    number = seed + layers + resident
    case = AtomsCase(
        shape,
        layers,
        {"seed": seed, "timing": TIMINGS[number % 3], "preempt_every": 400 * (number % 2)},
        per_row=bool(number % 2),
        rank=(layers + seed) % 3,
        base=(None, *OUT_TYPES)[(layers + seed) % 4],
        atom=OUT_TYPES[number % 3],
        grad=OUT_TYPES[layers % 3],
        out=OUT_TYPES[(layers + 2 * seed) % 3],
        resident=resident,
        ctas=1 + number % 3,
        shift=number % 4 * 2 % 5,
    )
    assert case.run() == ([], True)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("atom", [np.float32, np.uint16])
@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_a_step_gives_the_bits_of_the_cpu(rule: str, atom: Any, resident: bool) -> None:
    assert StepCase(rule, {"seed": 1}, atom, resident).run() == ([], True)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("few", [True, False])
def test_combine_is_exact(few: bool, resident: bool) -> None:
    sizes = (5, 0, 1024, 1025, 3, 2050, 0)
    case = CombineCase(3, 2, sizes, {"seed": 2}, few=few, resident=resident)
    assert case.run() == ([], True)


def test_combine_takes_as_many_launches_as_it_needs() -> None:
    """Tables of eight tensors and 96 pointers."""
    assert CombineCase(2, 1, tuple(range(1, 20)), {"seed": 3}).run() == ([], True)
    assert CombineCase(30, 10, (9,) * 5, {"seed": 3}).run() == ([], True)


@pytest.mark.parametrize("dist", ["uniform", "sign", "normal"])
@pytest.mark.parametrize(
    ("count", "elements", "dtype", "parts"),
    [(0, 5, np.float32, 1), (3, 0, np.float32, 1), (1, 1, np.float16, 1), (6, 4099, np.uint16, 1),
     (9, 515, np.float32, 2)],
)  # fmt: skip
def test_gradients_of_random_bases(
    dist: str, count: int, elements: int, dtype: Any, parts: int
) -> None:
    options = {"seed": elements, "preempt_every": 500 * (parts - 1)}
    assert ProjectCase(dist, count, elements, options, dtype, parts).run() == ([], True)


def random_problem() -> dict[str, Any]:
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return {"atoms": normal(5, 3, 900), "coef": normal(9, 5), "grad": normal(9, 3, 900)}


def run_random(p: dict[str, Any], ctas: int, **options: Any) -> tuple[Any, Any, Any]:
    how = {"ctas": ctas, "resident": True, "options": probe.Options(**options)}
    w, d_atoms = np.full_like(p["grad"], np.nan), np.full_like(p["atoms"], np.nan)
    d_coef = np.full_like(p["coef"], np.nan)
    assert not probe.atoms_reconstruct(
        p["atoms"], p["coef"], None, None, None, 0.3, w, **how
    ).findings
    assert not probe.atoms_backward(
        p["grad"], p["atoms"], p["coef"], 0.3, d_atoms, d_coef, rule="", factors=[], first=None,
        second=None, **how,
    ).findings  # fmt: skip
    return w, d_atoms, d_coef


def test_random_problems_stay_within_the_bound() -> None:
    """dC: 16 products of a lane and tile, five halvings, then in float64."""
    p = random_problem()
    w, d_atoms, d_coef = run_random(p, 3, seed=1)
    atoms, coef, grad = (torch.from_numpy(p[name]) for name in ("atoms", "coef", "grad"))
    exact = (
        reference.reconstruct(atoms, coef, scale=0.3),
        *reference.reconstruct_backward(grad, atoms, coef, 0.3),
    )
    for got, true, terms in zip((w, d_atoms, d_coef), exact, (5, 9, 22), strict=True):
        error = (torch.from_numpy(got).double() - true.value).abs()
        assert (error <= true.bound(terms, torch.float32)).all()


def test_results_depend_neither_on_the_schedule_nor_on_the_number_of_ctas() -> None:
    p = random_problem()
    runs = ((1, {"seed": 1}), (2, {"seed": 2, "preempt_every": 300}), (5, {"seed": 3}))
    bits = {tuple(a.tobytes() for a in run_random(p, n, **options)) for n, options in runs}
    assert len(bits) == 1


def test_nan_spreads_to_its_element_and_sums() -> None:
    p = random_problem()
    p["atoms"][1, 2, 899] = np.nan
    w, d_atoms, d_coef = run_random(p, 2)
    assert np.isnan(w).sum() == 9
    assert np.isnan(w[:, 2, 899]).all()
    assert not np.isnan(d_atoms).any()
    assert np.isnan(d_coef).tolist() == [[False, True, False, False, False]] * 9


def test_float32_masters_are_rounded_once() -> None:
    p = random_problem()
    out = np.full(p["grad"].shape, 0x7FC1, np.uint16)
    how = {"ctas": 2, "resident": True, "options": probe.Options()}
    assert not probe.atoms_reconstruct(
        p["atoms"], p["coef"], None, None, None, 0.3, out, **how
    ).findings
    np.testing.assert_array_equal(out, to_bf16(run_random(p, 2)[0]))
