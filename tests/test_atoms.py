"""Reconstruction from shared atoms: values, gradients, Matrix PCA, sums of checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from atoms_problems import Problem, make_problem
from wlib.reference import atoms as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_row": True},
    {"base": True},
    {"rank": 3},
    {"per_row": True, "base": True, "rank": 1},
]
# Blocks of 256 elements: below, at and above their size; one layer, one atom, odd numbers of both.
SIZES: list[tuple[tuple[int, ...], int, int]] = [
    ((1,), 1, 1),
    ((7, 5), 2, 3),
    ((3, 256), 3, 4),
    ((2, 257), 5, 11),
    ((4, 3, 3, 3), 1, 5),
    ((515,), 4, 2),
    ((0, 4), 2, 2),
    ((9, 700), 6, 9),
]


def reconstruct(p: Problem, **options: Any) -> Tensor:
    return wlib.atoms_reconstruct(p.atoms, p.coef, p.base, p.residual, p.scale, **options)


def backward(p: Problem) -> tuple[Tensor, Tensor]:
    grads = torch.ops.wlib.atoms_reconstruct_backward(p.grad, p.atoms, p.coef, scale=p.scale)
    return tuple(grads)


def expected(p: Problem) -> reference.Reference:
    return reference.reconstruct(p.atoms, p.coef, p.base, p.residual, p.scale)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("shape", "layers", "atoms"), SIZES)
def test_exact_problems(
    shape: tuple[int, ...], layers: int, atoms: int, options: dict[str, Any]
) -> None:
    for dtype in (*DTYPES, torch.float64):
        p = make_problem(shape, layers, atoms, exact=True, dtype=dtype, **options)
        outs = DTYPES if dtype != torch.float64 else (torch.float64,)
        for out in outs:
            w = reconstruct(p, out_dtype=out)
            assert w.dtype == out
            assert torch.equal(w, expected(p).value.to(out))
        references = reference.reconstruct_backward(p.grad, p.atoms, p.coef, p.scale)
        for got, true in zip(backward(p), references, strict=True):
            assert torch.equal(got, true.value.to(got.dtype))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_problems_stay_within_the_bound(dtype: torch.dtype, options: dict[str, Any]) -> None:
    p = make_problem((33, 300), 7, 10, exact=False, dtype=dtype, **options)
    true = expected(p)
    terms = 10 + options.get("rank", 0)
    for out in DTYPES:
        error = (reconstruct(p, out_dtype=out).double() - true.value).abs()
        assert (error <= true.bound(terms, out)).all()
    references = reference.reconstruct_backward(p.grad, p.atoms, p.coef, p.scale)
    for got, true, count in zip(backward(p), references, (7, 256), strict=True):
        error = (got.double() - true.value).abs()  # beyond a block of 256, sums are in float64
        assert (error <= true.bound(count, got.dtype)).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_reach_every_argument(per_row: bool) -> None:
    p = make_problem((5, 7), 3, 4, exact=False, per_row=per_row, base=True, rank=2,
                     dtype=torch.float64)  # fmt: skip
    leaves = [p.atoms, p.coef, p.base, *p.residual]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def run(atoms: Tensor, coef: Tensor, base: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return wlib.atoms_reconstruct(atoms, coef, base, (a, b), 0.7)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_masters_train_through_a_cast(dtype: torch.dtype) -> None:
    p = make_problem((6, 40), 3, 2, exact=True, base=True, rank=1)
    leaves = [t.clone().requires_grad_() for t in (p.atoms, p.coef, p.base, *p.residual)]
    atoms, coef, base, a, b = leaves
    w = wlib.atoms_reconstruct(atoms, coef, base, (a, b), p.scale, dtype)
    w.backward(p.grad.to(dtype).transpose(1, 2).contiguous().transpose(1, 2))
    true = reference.reconstruct_backward(p.grad, p.atoms, p.coef, p.scale)
    assert torch.equal(atoms.grad, true[0].value.float())
    assert torch.equal(coef.grad, true[1].value.float())
    assert torch.equal(base.grad, p.grad)
    assert torch.equal(a.grad, p.grad @ p.residual[1].mT)
    assert torch.equal(b.grad, p.residual[0].mT @ p.grad)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    p = make_problem((64, 1000), 5, 7, exact=False)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((reconstruct(p), *backward(p)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_nan_spreads_to_its_element_and_sums() -> None:
    p = make_problem((3, 300), 2, 3, exact=True)
    p.atoms[1, 2, 299] = torch.nan
    assert reconstruct(p).isnan().nonzero().tolist() == [[0, 2, 299], [1, 2, 299]]
    grad_atoms, grad_coef = backward(p)
    assert not grad_atoms.isnan().any()
    assert grad_coef.isnan().tolist() == [[False, True, False]] * 2


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for options in OPTIONS:
        p = make_problem((4, 6), 3, 2, exact=True, **options)
        tensors = (p.atoms, p.coef, p.base, *(p.residual or (None, None)))
        leaves = tuple(t if t is None else t.requires_grad_() for t in tensors)
        calls.append(("atoms_reconstruct", leaves, {"scale": 0.5, "out_dtype": torch.bfloat16}))
        arguments = (p.grad, p.atoms.detach(), p.coef.detach())
        calls.append(("atoms_reconstruct_backward", arguments, {"scale": 2.0}))
    lists = [torch.randn(3), torch.randn(2, 2).bfloat16()] * 4
    return [*calls, ("atoms_combine", (lists, torch.randn(3, 4)), {})]


@pytest.mark.parametrize(("op", "arguments", "options"), samples())
def test_opcheck(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    overload = getattr(torch.ops.wlib, op).default
    results = torch.library.opcheck(overload, arguments, options)
    assert set(results.values()) == {"SUCCESS"}


def test_compile_with_gradients() -> None:
    def loss(atoms: Tensor, coef: Tensor, x: Tensor) -> Tensor:
        w = wlib.atoms_reconstruct(atoms, torch.softmax(coef, -1))
        for layer in w.unbind():
            x = x @ layer.T
        return x.square().sum()

    leaves = [torch.randn(2, 8, 8), torch.randn(3, 2)]
    grads = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        run(*own, torch.ones(4, 8)).backward()
        grads.append([leaf.grad for leaf in own])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_combine(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = ((), (3,), (17, 33), (0, 2), (600,))
    lists = [
        [torch.randint(-4, 5, shape, generator=generator).to(dtype) for shape in shapes]
        for _ in range(5)
    ]
    coef = torch.randint(-4, 5, (3, 5), generator=generator) / 2
    coef = coef.to(torch.float64 if dtype == torch.float64 else torch.float32)
    outs = wlib.combine(lists, coef)
    for got, true in zip(outs, reference.combine(lists, coef), strict=True):
        for t, r in zip(got, true, strict=True):
            assert torch.equal(t, r.value.to(dtype))
    (one,) = wlib.combine(lists, coef[1])
    assert all(map(torch.equal, one, outs[1]))


def test_combine_keeps_the_dtype_of_every_tensor() -> None:
    lists = [[torch.ones(3), torch.ones(4, dtype=torch.bfloat16)] for _ in range(2)]
    (outs,) = wlib.combine(lists, torch.tensor([0.25, 0.5]))
    assert [t.dtype for t in outs] == [torch.float32, torch.bfloat16]
    assert all((t == 0.75).all() for t in outs)
