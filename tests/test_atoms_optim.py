"""Optimiser steps on shared atoms: against torch.optim.AdamW and a float64 Lion; training."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from atoms_problems import make_problem
from wlib.reference import atoms as reference

NUMBERS: dict[str, Any] = {"lr": 0.03, "betas": (0.9, 0.98), "weight_decay": 0.1}


def lion(p: Tensor, m: Tensor, g: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lion in float64: parameters, moments, and where the sign is certain."""
    b1, b2 = NUMBERS["betas"]
    direction = b1 * m + (1 - b1) * g
    p = p * (1 - NUMBERS["lr"] * NUMBERS["weight_decay"]) - NUMBERS["lr"] * direction.sign()
    return p, b2 * m + (1 - b2) * g, direction.abs() > slack


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_adamw_takes_the_steps_of_torch(dtype: torch.dtype, per_row: bool) -> None:
    """Five steps; in float64 both agree to rounding, in 32 and 16 bits each is near float64."""
    problem = make_problem((5, 301), 4, 3, exact=False, dtype=dtype, per_row=per_row)
    atoms, wide = problem.atoms.clone(), problem.atoms.double()
    exact = torch.nn.Parameter(wide.clone())
    optimizer = torch.optim.AdamW([exact], eps=1e-6, **NUMBERS)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    moments = [torch.zeros(atoms.shape, dtype=accumulated) for _ in range(2)]
    for step in range(1, 6):
        grad = (problem.grad * step).contiguous()
        before = atoms.clone()
        exact.data.copy_(before)  # one step at a time, from the same atoms
        found, expected_coef = reference.reconstruct_backward(grad, before, problem.coef, 0.3)
        exact.grad = found.value
        optimizer.step()
        options = {"eps": 1e-6, "scale": 0.3, "step": step, **NUMBERS}
        grad_coef = wlib.atoms_step(grad, atoms, problem.coef, *moments, **options)
        error = (grad_coef.double() - expected_coef.value).abs()
        assert (error <= expected_coef.bound(256, accumulated)).all()
        # A gradient off by e shifts m / sqrt(v) by at most 4 e / max(sqrt(v), eps) here, and six
        # roundings follow; then one to the dtype of the atoms.
        eps = torch.finfo(accumulated).eps
        off = found.bound(4, accumulated) / moments[1].double().sqrt().clamp_min(1e-6) + 8 * eps
        bound = 8 * step * NUMBERS["lr"] * off + 4 * eps * before.double().abs()
        bound += torch.finfo(dtype).eps / 2 * exact.data.abs()
        assert ((atoms.double() - exact.data).abs() <= bound).all()
        assert not torch.equal(atoms, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lion_is_its_formula(dtype: torch.dtype) -> None:
    problem = make_problem((5, 301), 4, 3, exact=False, dtype=dtype)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    atoms, moment = problem.atoms.clone(), torch.zeros(problem.atoms.shape, dtype=accumulated)
    eps = torch.finfo(accumulated).eps
    for step in range(1, 5):
        grad = (problem.grad * (-1) ** step).contiguous()
        p, m = atoms.double(), moment.double()
        found = reference.reconstruct_backward(grad, atoms, problem.coef, 0.3)[0]
        slack = found.bound(4, accumulated) + 4 * eps * (m.abs() + found.magnitude)
        exact_p, exact_m, certain = lion(p, m, found.value, slack)
        wlib.atoms_step(grad, atoms, problem.coef, moment, scale=0.3, step=step, **NUMBERS)
        assert certain.float().mean() > 0.999
        assert ((moment.double() - exact_m).abs() <= slack).all()
        bound = 4 * eps * (p.abs() + 1) + torch.finfo(dtype).eps / 2 * exact_p.abs()
        assert ((atoms.double() - exact_p).abs() <= bound)[certain].all()


def test_lion_leaves_what_has_no_direction() -> None:
    atoms, moment = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    wlib.atoms_step(torch.zeros(1, 3, 4), atoms, torch.ones(1, 2), moment, lr=0.5, betas=(0.9, 0.9))
    assert (atoms == 1).all()


@pytest.mark.parametrize("optimizer_class", [wlib.AtomsAdamW, wlib.AtomsLion])
def test_training_through_a_network_of_coefficients(optimizer_class: Any) -> None:
    """MASA's recipe: coefficients from embeddings by an MLP. The loss falls; a scheduler acts."""
    torch.manual_seed(0)
    target = torch.randn(6, 8, 10)
    atoms = torch.nn.Parameter(torch.randn(4, 8, 10) * 0.1)
    embedding = torch.randn(6, 5)
    mlp = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = optimizer_class(atoms, lr=0.02, weight_decay=0.0)
    others = torch.optim.AdamW(mlp.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.5)
    losses = []
    for _ in range(150):
        w = optimizer.reconstruct(mlp(embedding))
        loss = (w - target).square().mean()
        loss.backward()
        others.zero_grad()
        optimizer.step()
        others.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert atoms.grad is None
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_a_restored_optimizer_goes_on_as_before() -> None:
    torch.manual_seed(1)
    atoms = torch.randn(3, 4, 5).bfloat16()
    coef, grads = torch.randn(2, 3, requires_grad=True), torch.randn(4, 2, 4, 5).bfloat16()
    first = wlib.AtomsAdamW(atoms, lr=0.1)

    def run(optimizer: Any, grad: Tensor) -> None:
        optimizer.reconstruct(coef).backward(grad)
        optimizer.step()

    for grad in grads[:2]:
        run(first, grad)
    other = atoms.clone()
    second = wlib.AtomsAdamW(other, lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for grad in grads[2:]:
        run(first, grad)
        run(second, grad)
    assert torch.equal(atoms, other)
    state = second.state[other]
    assert state["step"] == 4
    assert state["exp_avg_sq"].dtype == torch.float32
    assert coef.grad is not None


def test_compile_with_the_step() -> None:
    atoms = torch.randn(2, 4, 6)
    moments = [torch.zeros(2, 4, 6) for _ in range(2)]
    coef, grad = torch.randn(3, 2), torch.randn(3, 4, 6)

    def run(atoms: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return 2 * wlib.atoms_step(grad, atoms, coef, first, second, **NUMBERS)

    others = [t.clone() for t in (atoms, *moments)]
    expected = run(atoms, *moments)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*others)
    assert torch.equal(compiled, expected)
    for got, true in zip(others, (atoms, *moments), strict=True):
        assert torch.equal(got, true)


@pytest.mark.parametrize("second", [False, True])
def test_opcheck(second: bool) -> None:
    arguments = (
        torch.randn(3, 4, 6), torch.randn(2, 4, 6).bfloat16(), torch.randn(3, 2),
        torch.zeros(2, 4, 6), torch.zeros(2, 4, 6) if second else None,
    )  # fmt: skip
    options = {"rule": "adamw" if second else "lion", "lr": 0.1, "beta1": 0.9, "beta2": 0.99}
    results = torch.library.opcheck(torch.ops.wlib.atoms_step_.default, arguments, options)
    assert set(results.values()) == {"SUCCESS"}


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(*shape, **options)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rule": "sgd"}, "expected rule 'adamw' or 'lion', got 'sgd' (argument 'rule')"),
    ({"exp_avg_sq": None}, "expected exp_avg_sq for rule 'adamw', got none "
     "(argument 'exp_avg_sq')"),
    ({"rule": "lion"}, "expected no exp_avg_sq for rule 'lion', got one (argument 'exp_avg_sq')"),
    ({"exp_avg": zeros(2, 4)}, "expected exp_avg of shape [2, 4, 6], got [2, 4] "
     "(argument 'exp_avg')"),
    ({"exp_avg_sq": zeros(2, 4, 12)[..., ::2]}, "expected contiguous exp_avg_sq, got strides "
     "[48, 12, 2] (argument 'exp_avg_sq')"),
    ({"exp_avg": zeros(2, 4, 6, dtype=torch.int32)}, "expected exp_avg of dtype torch.float32, "
     "torch.bfloat16 or torch.float16, got torch.int32 (argument 'exp_avg')"),
    ({"grad": zeros(4, 4, 6)}, "expected grad of shape [3, 4, 6], got [4, 4, 6] "
     "(argument 'grad')"),
    ({"coef": zeros(3, 3)}, "expected coef of shape [L, 2] or [L, 2, 4] to match atoms "
     "[2, 4, 6], got [3, 3] (argument 'coef')"),
    ({"atoms": zeros(2, 4, 12)[..., ::2]}, "expected contiguous atoms, got strides [48, 12, 2] "
     "(argument 'atoms')"),
    ({"lr": -1.0}, "expected lr of at least 0, got -1.000000 (argument 'lr')"),
    ({"beta1": 1.0}, "expected beta1 in [0, 1), got 1.000000 (argument 'beta1')"),
    ({"beta2": -0.5}, "expected beta2 in [0, 1), got -0.500000 (argument 'beta2')"),
    ({"eps": -1.0}, "expected eps of at least 0, got -1.000000 (argument 'eps')"),
    ({"weight_decay": -1.0}, "expected weight_decay of at least 0, got -1.000000 "
     "(argument 'weight_decay')"),
    ({"step": 0}, "expected step of at least 1, got 0 (argument 'step')"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_refuses_and_writes_nothing(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "grad": torch.ones(3, 4, 6), "atoms": zeros(2, 4, 6), "coef": torch.ones(3, 2),
        "exp_avg": zeros(2, 4, 6), "exp_avg_sq": zeros(2, 4, 6), "rule": "adamw", "lr": 1.0,
        "beta1": 0.9, "beta2": 0.9,
    } | changed  # fmt: skip
    with pytest.raises(ValueError, match=f"^{re.escape(f'wlib::atoms_step_: {message}')}$"):
        torch.ops.wlib.atoms_step_(**arguments)
    for name in ("atoms", "exp_avg", "exp_avg_sq"):
        assert arguments[name] is None or not arguments[name].any()


def test_classes_refuse_what_is_not_a_tensor_of_floats() -> None:
    with pytest.raises(ValueError, match=r"expected atoms, one tensor, got list"):
        wlib.AtomsAdamW([torch.zeros(2, 3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"\(argument 'atoms'\)"):
        wlib.AtomsLion(torch.zeros(2, 3, dtype=torch.int32))
