"""Sums of shared atoms, their gradients, optimiser steps and random bases on the GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from atoms_problems import Problem, make_problem
from wlib.reference import atoms as reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SIZES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((1, 1), 1, 1),
    ((7, 5), 2, 3),
    ((3, 513), 9, 4),
    ((0, 4), 2, 2),
    ((64, 4096), 32, 11),
    ((33, 1000), 80, 27),
    ((9, 700), 126, 60),  # beyond shared memory
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"base": True, "rank": 3},
    {"per_row": True, "base": True, "rank": 1},
)


def run(p: Problem, device: str, out: torch.dtype) -> list[Tensor]:
    def move(t: Tensor | None) -> Any:
        return None if t is None else t.to(device)

    atoms, coef, base = move(p.atoms), move(p.coef), move(p.base)
    residual = None if p.residual is None else (move(p.residual[0]), move(p.residual[1]))
    w = wlib.atoms_reconstruct(atoms, coef, base, residual, p.scale, out)
    grads = torch.ops.wlib.atoms_reconstruct_backward(move(p.grad), atoms, coef, scale=p.scale)
    return [w, *grads]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("shape", "layers", "atoms"), SIZES)
def test_exact_problems(
    shape: tuple[int, ...], layers: int, atoms: int, options: dict[str, Any]
) -> None:
    for dtype in FLOATS:
        p = make_problem(shape, layers, atoms, exact=True, dtype=dtype, **options)
        true = (
            reference.reconstruct(p.atoms, p.coef, p.base, p.residual, p.scale),
            *reference.reconstruct_backward(p.grad, p.atoms, p.coef, p.scale),
        )
        for got, exact in zip(run(p, "cuda", dtype), true, strict=True):
            assert torch.equal(got.cpu(), exact.value.to(got.dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_random_problems_stay_within_the_bound(dtype: torch.dtype) -> None:
    p = make_problem((64, 4096), 32, 11, exact=False, dtype=dtype)
    first, again = run(p, "cuda", dtype), run(p, "cuda", dtype)
    true = (
        reference.reconstruct(p.atoms, p.coef, scale=p.scale),
        *reference.reconstruct_backward(p.grad, p.atoms, p.coef, p.scale),
    )
    # dC: 16 products of a lane and tile, five halvings, two tiles of a chunk.
    for got, exact, terms in zip(first, true, (11, 32, 40), strict=True):
        error = (got.cpu().double() - exact.value).abs()
        assert (error <= exact.bound(terms, got.dtype)).all()
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("two", [False, True])
def test_a_step_gives_the_bits_of_the_cpu(two: bool, dtype: torch.dtype) -> None:
    """On exact gradients."""
    p = make_problem((5, 700), 9, 10, exact=True, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        atoms, coef, grad = (t.to(device, copy=True) for t in (p.atoms, p.coef, p.grad))
        moments = [torch.ones(atoms.shape, device=device) for _ in range(1 + two)]
        options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1, "step": 2}
        d_coef = wlib.atoms_step(grad, atoms, coef, *moments, scale=0.5, **options)
        results.append([t.cpu() for t in (atoms, *moments, d_coef)])
    assert all(map(torch.equal, *results))


def test_combine_is_exact() -> None:
    draw = torch.Generator().manual_seed(3)
    shapes = [(n,) for n in range(500)] + [(17, 33), (0, 2), (3, 4096)]
    lists = [
        [torch.randint(-4, 5, s, generator=draw).to(FLOATS[i % 3]) for i, s in enumerate(shapes)]
        for _ in range(5)
    ]
    coef = torch.randint(-4, 5, (3, 5), generator=draw) / 2
    outs = wlib.combine([[t.cuda() for t in tensors] for tensors in lists], coef.cuda())
    for got, true in zip(outs, reference.combine(lists, coef), strict=True):
        for t, r in zip(got, true, strict=True):
            assert torch.equal(t.cpu(), r.value.to(t.dtype))


@pytest.mark.parametrize("dist", ["uniform", "sign", "normal"])
@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 1), (6, 517), (70, 65536), (3, 5_000_000)])
def test_random_bases(dist: str, k: int, n: int) -> None:
    """Sums have the bits of the CPU; gradients are exact for signs, near float64 otherwise."""
    coef = torch.randn(k, generator=torch.Generator().manual_seed(n))
    expanded = [wlib.prng_expand(coef.to(d), (n,), 5, dist).cpu() for d in ("cpu", "cuda")]
    assert torch.equal(*expanded)
    values = torch.randint(-3, 4, (n,), generator=torch.Generator().manual_seed(k)).float()
    arguments = (k, 5, dist, 0)
    exact = torch.ops.wlib.prng_project(values.double(), *arguments)
    got = torch.ops.wlib.prng_project(values.cuda(), *arguments).cpu()
    magnitude = values.abs().sum() * (6 if dist == "normal" else 1)
    bound = 0 if dist == "sign" else (32 * 2 + 9) * 2.0**-24 * magnitude
    assert ((got.double() - exact).abs() <= bound).all()


def test_guard_bands_and_odd_addresses() -> None:
    p = make_problem((3, 501), 5, 3, exact=True)
    memory = torch.full((p.atoms.numel() + 2,), torch.nan, device="cuda")
    atoms = memory[1:-1].view(p.atoms.shape)
    atoms.copy_(p.atoms)
    moment = torch.full_like(memory, torch.nan)
    first = moment[1:-1].view(p.atoms.shape).zero_()
    options: dict[str, Any] = {"lr": 0.5, "betas": (0.5, 0.5)}
    wlib.atoms_step(p.grad.cuda(), atoms, p.coef.cuda(), first, **options)
    expected, expected_first = p.atoms.clone(), torch.zeros_like(p.atoms)
    wlib.atoms_step(p.grad, expected, p.coef, expected_first, **options)
    assert torch.equal(atoms.cpu(), expected)
    assert torch.equal(first.cpu(), expected_first)
    for guarded in (memory, moment):
        assert guarded[[0, -1]].isnan().all()


def test_a_graph_replays_both_directions() -> None:
    problems = [make_problem((8, 512), 8, 3, exact=True, seed=seed) for seed in (1, 2)]
    atoms, coef, grad = (t.cuda() for t in (problems[0].atoms, problems[0].coef, problems[0].grad))
    graph = torch.cuda.CUDAGraph()
    wlib.atoms_reconstruct(atoms, coef)
    torch.ops.wlib.atoms_reconstruct_backward(grad, atoms, coef)
    with torch.cuda.graph(graph):
        w = wlib.atoms_reconstruct(atoms, coef)
        _, d_coef = torch.ops.wlib.atoms_reconstruct_backward(grad, atoms, coef)
    for p in problems[::-1]:
        atoms.copy_(p.atoms), coef.copy_(p.coef), grad.copy_(p.grad)
        graph.replay()
        assert torch.equal(w.cpu(), wlib.atoms_reconstruct(p.atoms, p.coef))
        exact = torch.ops.wlib.atoms_reconstruct_backward(p.grad, p.atoms, p.coef)[1]
        assert torch.equal(d_coef.cpu(), exact)
