"""The activation quantiser on the CPU, against torch and the float64 reference."""

from __future__ import annotations

import pytest
import torch

import wlib
from test_int4fp8 import GROUPS, assert_same_bits
from wlib.reference import int4fp8 as reference
from wlib.reference import quantizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# On either side of a thread's eight columns, a warp's 1024, and the row's 16 warps.
COLUMNS = (1, 8, 100, 384, 1000, 1032, 4096, 17000)


def quantized(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of values, by torch."""
    scale = y.float().abs().amax(dim=-1) / 448
    quotient = (y.float() / scale[..., None]).nan_to_num()  # 0 of a token of zeros
    return quotient.to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 100), (64,), (17, 513), (2, 0, 8)])
def test_fp8_quantize(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) * torch.exp2(torch.randint(-12, 12, shape))).to(dtype)
    xq, scale = wlib.fp8_quantize(x)
    expected = x.float().abs().amax(dim=-1) / 448
    assert_same_bits(scale, expected)
    assert_same_bits(xq, (x.float() / expected[..., None]).to(torch.float8_e4m3fn))


def test_fp8_quantize_rounds_ties_to_even() -> None:
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = (codes[1:] + codes[:-1]) / 2
    x = torch.cat((ties, -ties, torch.tensor([448.0]))).float()[None]  # the scale is 1
    xq, scale = wlib.fp8_quantize(x)
    assert scale == 1
    even = torch.arange(1, 127)
    even = (even - even % 2).to(torch.uint8)
    assert torch.equal(xq.view(torch.uint8)[0, :126], even)
    assert torch.equal(xq.view(torch.uint8)[0, 126:252], even | 128)


@pytest.mark.parametrize(("k", "group_size"), GROUPS)
@pytest.mark.parametrize("lead", [(), (1,), (3, 3), (2, 0)])
def test_fp8_group_sums_are_exact_and_rounded_once(
    lead: tuple[int, ...], k: int, group_size: int
) -> None:
    codes = torch.randint(0, 256, (*lead, k), dtype=torch.uint8)
    codes[codes & 127 == 127] = 126  # no NaN
    xq = codes.view(torch.float8_e4m3fn)
    sums = wlib.fp8_group_sums(xq, group_size)
    assert_same_bits(sums, reference.group_sums(xq, group_size).float())


def test_fp8_group_sums_of_rows_that_lie_apart_and_of_nan() -> None:
    xq = torch.randn(5, 400).to(torch.float8_e4m3fn)[:, 16:272]
    xq[3, 200] = torch.nan
    sums = wlib.fp8_group_sums(xq, 64)
    assert sums.isnan().nonzero().tolist() == [[3, 3]]
    assert_same_bits(sums, wlib.fp8_group_sums(xq.contiguous(), 64))


def test_fp8_quantize_of_special_rows() -> None:
    x = torch.randn(5, 96)
    x[1] = 0
    x[2, 7] = torch.nan
    x[3, 8] = -torch.inf
    x[4] = 1e-45
    xq, scale = wlib.fp8_quantize(x)
    assert_same_bits(xq[0], wlib.fp8_quantize(x[0])[0])
    assert scale[1] == 0
    assert not xq[1].view(torch.uint8).any()
    assert scale[2].isnan()
    assert xq[2].float().isnan().all()
    assert scale[3] == torch.inf
    assert xq[3, 8].isnan()
    assert scale[4] == 0
    assert not xq[4].view(torch.uint8).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", COLUMNS)
def test_rms_norm_is_exact_where_the_root_is(k: int, dtype: torch.dtype) -> None:
    problem = quantizer.exact_norm(5, k, dtype)
    expected = quantized(problem.y)
    for weight in (problem.weight, problem.weight.float()):
        xq, scale, h = wlib.rms_norm_fp8_quantize(problem.x, weight, 0, residual=problem.residual)
        assert_same_bits(h, problem.h)
        assert_same_bits(scale, expected[1])
        assert torch.equal(xq.float(), expected[0].float())  # -0 may come out as 0
        assert_same_bits(wlib.rms_norm_fp8_quantize(problem.h, weight, 0)[0], xq)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", COLUMNS)
def test_rms_norm_stays_within_the_bound(k: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(4, k) * torch.exp2(torch.randn(4, 1) * 3) for _ in range(2))
    x, residual, weight = x.to(dtype), residual.to(dtype), torch.randn(k).to(dtype)
    xq, scale, h = wlib.rms_norm_fp8_quantize(x, weight, 1e-5, residual=residual)
    assert_same_bits(h, x + residual)
    assert quantizer.rms_norm(h, weight, 1e-5).accepts(xq, scale)
    again = wlib.rms_norm_fp8_quantize(h, weight, 1e-5)  # the norm is of the rounded sum
    assert_same_bits(again[0], xq)
    assert_same_bits(again[1], scale)
    one = wlib.rms_norm_fp8_quantize(x[2:3], weight, 1e-5, residual=residual[2:3])
    for row, rows in zip(one, (xq, scale, h), strict=True):
        assert_same_bits(row, rows[2:3])


def test_the_bound_of_the_norm_can_fail() -> None:
    h, weight = torch.randn(3, 256), torch.rand(256) + 1
    xq, scale = wlib.rms_norm_fp8_quantize(h, weight)
    exact = quantizer.rms_norm(h, weight, 1e-6)
    assert exact.accepts(xq, scale)
    assert not exact.accepts(xq, scale * (1 + 2.0**-18))
    assert not exact.accepts(torch.roll(xq, 1), scale)
    assert not quantizer.rms_norm(h, weight, 1e-4).accepts(xq, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", COLUMNS)
def test_silu_mul_is_exact_where_silu_is(k: int, dtype: torch.dtype) -> None:
    gate, up, y = quantizer.exact_silu(5, k, dtype)
    xq, scale = wlib.silu_mul_fp8_quantize(torch.cat((gate, up), dim=1))
    expected = quantized(y)
    assert_same_bits(scale, expected[1])
    assert torch.equal(xq.float(), expected[0].float())
    pairs = torch.stack((gate, up), dim=2).flatten(1)
    interleaved = wlib.silu_mul_fp8_quantize(pairs, interleaved=True)
    assert_same_bits(interleaved[0], xq)
    assert_same_bits(interleaved[1], scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1, 30])
def test_silu_mul_stays_within_the_bound(spread: int, dtype: torch.dtype) -> None:
    gate, up = (torch.randn(4, 3000) * spread).to(dtype), torch.randn(4, 3000).to(dtype)
    xq, scale = wlib.silu_mul_fp8_quantize(torch.cat((gate, up), dim=1))
    exact = quantizer.silu_mul(gate, up)
    assert exact.accepts(xq, scale)
    assert not exact.accepts(xq, scale * (1 + 2.0**-18))


def test_silu_of_special_gates() -> None:
    gates = torch.tensor([0, -0.0, 20, 20.5, -80, -80.5, 3e38, -3e38, torch.inf, -torch.inf])
    up = torch.ones(10, 1)
    xq, scale = wlib.silu_mul_fp8_quantize(torch.cat((gates[:, None], up), dim=1))
    silu = torch.nn.functional.silu(gates[:5].double())
    torch.testing.assert_close(scale[:5].double(), silu.abs() / 448, rtol=2.0**-21, atol=0)
    assert_same_bits(scale[5:], torch.tensor([0, 3e38, 0, torch.inf, 0]) / 448)
    assert xq[8].isnan()
    nan = wlib.silu_mul_fp8_quantize(torch.tensor([[torch.nan, 1.0], [1.0, torch.nan]]))
    assert nan[1].isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rms_norm_of_special_rows(value: float) -> None:
    x = torch.randn(3, 96)
    x[1, 5] = value
    x[2] = 0
    xq, scale = wlib.rms_norm_fp8_quantize(x, torch.ones(96))
    assert scale.isnan().tolist() == [False, True, False]  # Inf / Inf
    assert xq[1].float().isnan().all()
    assert scale[2] == 0
    assert not xq[2].view(torch.uint8).any()
    assert wlib.rms_norm_fp8_quantize(x[2:], torch.ones(96), 0)[1].isnan().all()  # 0 / 0


@pytest.mark.parametrize(("k", "group_size"), GROUPS)
def test_sums_are_those_of_the_codes(k: int, group_size: int) -> None:
    x, weight = torch.randn(2, 3, k).bfloat16(), torch.rand(k)
    calls = (
        (wlib.fp8_quantize(x), wlib.fp8_quantize(x, sums_group=group_size)),
        (
            wlib.rms_norm_fp8_quantize(x, weight, residual=x),
            wlib.rms_norm_fp8_quantize(x, weight, residual=x, sums_group=group_size),
        ),
        (
            wlib.silu_mul_fp8_quantize(torch.cat((x, x), dim=2)),
            wlib.silu_mul_fp8_quantize(torch.cat((x, x), dim=2), sums_group=group_size),
        ),
    )
    for without, (xq, scale, sums, *residual) in calls:
        assert_same_bits(sums, wlib.fp8_group_sums(xq, group_size))
        for one, two in zip(without, (xq, scale, *residual), strict=True):
            assert_same_bits(one, two)


def test_rows_may_lie_apart() -> None:
    wide, weight = torch.randn(6, 400), torch.randn(160)
    x, residual = wide[:, 16:176], wide[:, 200:360]
    for strided, dense in (
        (
            wlib.rms_norm_fp8_quantize(x, weight, residual=residual),
            wlib.rms_norm_fp8_quantize(x.contiguous(), weight, residual=residual.contiguous()),
        ),
        (wlib.silu_mul_fp8_quantize(x), wlib.silu_mul_fp8_quantize(x.contiguous())),
    ):
        for one, two in zip(strided, dense, strict=True):
            assert_same_bits(one, two)
