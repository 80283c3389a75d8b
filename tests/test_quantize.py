"""The activation quantiser on the CPU, against torch and the float64 reference."""

from __future__ import annotations

import pytest
import torch

import wlib
from test_int4fp8 import GROUPS, assert_same_bits
from wlib.reference import int4fp8 as reference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
