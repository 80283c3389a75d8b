"""What follows the sums, on the GPU: activation, residual, FP8 outputs, in place."""

from typing import Any

import pytest
import torch
from gpu_problems import Problem, exact_problem, random_problem

import wlib
from wlib.reference import int4fp8 as reference

FP8 = torch.float8_e4m3fn
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TOKENS = (1, 9, 33, 65, 300)


def solve(problem: Problem, **options: Any) -> torch.Tensor:
    return wlib.int4fp8_gemm(
        problem.x, problem.weight.pack(), problem.x_scale, problem.bias, **options
    )


def expected(problem: Problem, **options: Any) -> reference.Reference:
    return reference.int4fp8_gemm(
        problem.x, problem.weight, problem.x_scale, problem.bias, **options
    )


def integers(m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(m + n)
    return torch.randint(-32, 33, (m, n), generator=draw).to(dtype).cuda()


@pytest.mark.parametrize("out_dtype", [*FLOATS, FP8])
@pytest.mark.parametrize("residual_dtype", FLOATS)
@pytest.mark.parametrize("n", [65, 386])
def test_residual_is_exact(n: int, residual_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    scale = {"out_scale": torch.tensor(0.25).cuda()} if out_dtype == FP8 else {}
    for m in TOKENS:
        problem = exact_problem(m, n, 512, 128, bias_dtype=torch.float32).to("cuda")
        residual = integers(m, n, residual_dtype)
        y = solve(problem, residual=residual, out_dtype=out_dtype, **scale)
        right = expected(problem, residual=residual, **scale).y.to(out_dtype)
        assert torch.equal(y.view(torch.uint8), right.view(torch.uint8)), m


@pytest.mark.parametrize("out_dtype", [*FLOATS, FP8])
@pytest.mark.parametrize("with_residual", [False, True])
def test_silu_mul_errs_by_a_few_roundings(with_residual: bool, out_dtype: torch.dtype) -> None:
    """Sums are exact here, so that the bound of one product is enough."""
    options: dict[str, Any] = {"activation": "silu_mul"}
    if out_dtype == FP8:
        options["out_scale"] = torch.tensor(0.25).cuda()
    for m in TOKENS:
        problem = exact_problem(m, 258, 512, 64, bias_dtype=torch.bfloat16).to("cuda")
        if with_residual:
            options["residual"] = integers(m, 129, torch.bfloat16)
        y = solve(problem, out_dtype=out_dtype, **options)
        right = expected(problem, **options)
        error = (y.double() - right.y).abs()
        assert (error <= right.bound(0, out_dtype)).all(), m


@pytest.mark.parametrize("activation", ["none", "silu_mul"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_residual_may_be_the_output(dtype: torch.dtype, activation: str) -> None:
    for m in TOKENS:
        problem = random_problem(m, 384, 512, 128, seed=m)
        y = integers(m, 192 if activation == "silu_mul" else 384, dtype)
        apart = solve(problem, residual=y, activation=activation, out_dtype=dtype)
        solve(problem, residual=y, activation=activation, out=y)
        assert torch.equal(y, apart), m


def test_one_graph_holds_a_step_of_the_scale() -> None:
    """out_scale is read on the device: a replay sees its new value."""
    problem = exact_problem(16, 128, 256, 128).to("cuda")
    scale = torch.tensor(1.0).cuda()
    solve(problem, out_dtype=FP8, out_scale=scale)
    graph = torch.cuda.CUDAGraph()
    packed = problem.weight.pack()
    with torch.cuda.graph(graph):
        y = wlib.int4fp8_gemm(problem.x, packed, problem.x_scale, out_dtype=FP8, out_scale=scale)
    for value in (0.5, 4.0):
        scale.fill_(value)
        graph.replay()
        right = expected(problem, out_scale=scale).y.to(FP8)
        assert torch.equal(y.view(torch.uint8), right.view(torch.uint8))
