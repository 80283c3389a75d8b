"""What follows the sums of int4fp8_gemm: activation, residual, FP8 outputs, alone and combined."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib.reference import exact
from wlib.reference import int4fp8 as reference

FP8 = torch.float8_e4m3fn
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TOKENS = (1, 15, 16, 65)  # both routes of the CPU kernel


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def integers(m: int, n: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(-32, 33, (m, n)).to(dtype)


def solve(problem: exact.ExactProblem, **options: Any) -> tuple[Tensor, reference.Reference]:
    """The op's answer and the float64 one."""
    x, x_scale, weight, bias = problem
    y = wlib.int4fp8_gemm(x, weight.pack(), x_scale, bias, **options)
    options.pop("out_dtype", None)
    return y, reference.int4fp8_gemm(x, weight, x_scale, bias, **options)


def rounded(y: Tensor, dtype: torch.dtype) -> Tensor:
    assert torch.equal(y, y.float().double())  # else the caller demands too much
    return y.to(dtype)


@pytest.mark.parametrize("out_dtype", [*FLOATS, FP8])
@pytest.mark.parametrize("residual_dtype", FLOATS)
def test_residual_is_exact_on_a_grid(residual_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    scale = {"out_scale": torch.tensor(0.25)} if out_dtype == FP8 else {}
    for m, n in zip(TOKENS, (65, 130, 1, 192), strict=True):
        problem = exact.problem(m, n, 256, 128)
        residual = integers(m, n, residual_dtype)
        y, expected = solve(problem, residual=residual, out_dtype=out_dtype, **scale)
        assert_same_bits(y, rounded(expected.y, out_dtype))


@pytest.mark.parametrize("m", TOKENS)
def test_silu_mul_errs_by_a_few_roundings(m: int) -> None:
    problem = exact.problem(m, 190, 256, 64, zero_point=True)
    y, expected = solve(problem, activation="silu_mul", out_dtype=torch.float32)
    assert y.shape == (m, 95)
    torch.testing.assert_close(y.double(), expected.y, rtol=2.0**-21, atol=1e-30)
    gate, up = (
        wlib.int4fp8_gemm(
            problem.x,
            wlib.Int4Weight(*(t[rows].contiguous() for t in vars(problem.weight).values())).pack(),
            problem.x_scale,
            problem.bias[rows].contiguous(),
            torch.float32,
        )
        for rows in (slice(0, None, 2), slice(1, None, 2))
    )
    apart = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(y, apart, rtol=2.0**-21, atol=1e-30)


@pytest.mark.parametrize("out_dtype", [*FLOATS, FP8])
@pytest.mark.parametrize("activation", ["none", "silu_mul"])
@pytest.mark.parametrize("residual_dtype", [None, *FLOATS])
def test_every_combination_is_within_its_bound(
    residual_dtype: torch.dtype | None, activation: str, out_dtype: torch.dtype
) -> None:
    n, k = 100, 384
    options: dict[str, Any] = {"activation": activation, "out_dtype": out_dtype}
    if out_dtype == FP8:
        options["out_scale"] = torch.tensor(0.01)
    for m, zero_point in itertools.product(TOKENS, (False, True)):
        weight = wlib.Int4Weight.quantize(torch.randn(n, k) / k**0.5)
        if zero_point:
            weight = wlib.Int4Weight(weight.codes, weight.group_scale, torch.randn(n, k // 128))
        x, x_scale = wlib.fp8_quantize(torch.randn(m, k) * 3)
        problem = exact.ExactProblem(x, x_scale, weight, torch.randn(n))
        if residual_dtype is not None:
            columns = n // 2 if activation == "silu_mul" else n
            options["residual"] = torch.randn(m, columns).to(residual_dtype)
        y, expected = solve(problem, **options)
        error = (y.double() - expected.y).abs()
        assert (error <= expected.bound(k, out_dtype)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["none", "silu_mul"])
def test_the_residual_may_be_the_output(activation: str, dtype: torch.dtype) -> None:
    for m in TOKENS:
        problem = exact.problem(m, 130, 256, 128)
        y = integers(m, 65 if activation == "silu_mul" else 130, dtype)
        expected, _ = solve(problem, residual=y, activation=activation, out_dtype=dtype)
        solve_into = {"out": y, "residual": y, "activation": activation}
        packed = problem.weight.pack()
        wlib.int4fp8_gemm(problem.x, packed, problem.x_scale, problem.bias, **solve_into)
        assert_same_bits(y, expected)


@pytest.mark.parametrize("m", [3, 40])
def test_fp8_outputs_saturate_and_keep_nan(m: int) -> None:
    x, x_scale, weight, bias = exact.problem(m, 64, 128, 128)
    bias[0], bias[1], bias[2] = 1e6, -1e6, torch.nan
    bias[3], bias[4] = torch.inf, -torch.inf
    y = wlib.int4fp8_gemm(
        x, weight.pack(), x_scale, bias, FP8, out_scale=torch.tensor(2.0)
    ).double()
    assert (y[:, [0, 3]] == 448).all()
    assert (y[:, [1, 4]] == -448).all()
    assert y[:, 2].isnan().all()
    assert y[:, 5:].isfinite().all()


def test_silu_of_large_gates() -> None:
    """exp overflows for the negative ones; NaN only where torch's silu has it, too."""
    gates = torch.tensor([-torch.inf, -3e38, -1e3, -89.0, -0.0, 0.0, 89.0, 1e3, 3e38, torch.inf])
    weight = wlib.Int4Weight(
        torch.zeros(20, 64, dtype=torch.uint8), torch.ones(20, 1, dtype=torch.bfloat16)
    )
    bias = torch.stack((gates, torch.full((10,), 0.5)), dim=1).flatten()
    x = torch.zeros(2, 128).to(FP8)
    y = wlib.int4fp8_gemm(
        x, weight.pack(), torch.ones(2), bias, torch.float32, activation="silu_mul"
    )
    expected = torch.nn.functional.silu(gates) * 0.5
    torch.testing.assert_close(y, expected.expand(2, -1), rtol=1e-6, atol=1e-35, equal_nan=True)


def test_leading_dimensions_and_out() -> None:
    x, x_scale, weight, bias = exact.problem(6, 20, 128, 128)
    residual = integers(6, 10, torch.bfloat16)
    options: dict[str, Any] = {"activation": "silu_mul"}
    flat = wlib.int4fp8_gemm(x, weight.pack(), x_scale, bias, residual=residual, **options)
    out = torch.full((2, 3, 10), torch.nan, dtype=torch.bfloat16)
    wlib.int4fp8_gemm(
        x.view(2, 3, 128),
        weight.pack(),
        x_scale.view(2, 3),
        bias,
        out=out,
        residual=residual.view(2, 3, 10),
        **options,
    )
    assert_same_bits(out, flat.view(2, 3, 10))


@pytest.mark.parametrize(("group_size", "groups"), [(32, 8), (64, 4), (128, 2), (256, 2)])
def test_sums_of_x_may_come_along(group_size: int, groups: int) -> None:
    """The CPU adds up by itself."""
    x, x_scale, weight, bias = exact.problem(5, 20, 256, group_size, zero_point=True)
    packed = weight.pack()
    expected = wlib.int4fp8_gemm(x, packed, x_scale, bias)
    sums = torch.full((groups, 8), torch.nan)
    assert_same_bits(wlib.int4fp8_gemm(x, packed, x_scale, bias, x_sums=sums), expected)
