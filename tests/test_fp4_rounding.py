"""Random roundings of FP4: their bits, their distribution and that they are unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import wlib_probe
from torch import Tensor

import wlib
from test_fp4 import ALIGNMENT, octave, unpack
from wlib.reference import fp4 as reference

E4M3 = reference.e4m3_grid().numpy()


def test_stochastic_e4m3_steps_up_where_the_bits_reach_the_distance() -> None:
    """Between every two neighbours of the grid, at several places, for many bits."""
    random = np.concatenate([np.arange(0, 2**20, 4099), [2**20 - 1]]).astype(np.uint32)
    for code in range(126):
        low, step = E4M3[code], E4M3[code + 1] - E4M3[code]
        for part in (0, 2.0**-18, 0.25, 0.5, 1 - 2.0**-18):
            x = np.full(random.shape, low + part * step, np.float32)
            got = wlib_probe.float_to_e4m3_stochastic(x, random)
            assert np.array_equal(got, code + (part * 2**20 + random >= 2**20))
    huge = wlib_probe.float_to_e4m3_stochastic(np.float32([448, 449, 1e30, np.inf]), random[-1])
    assert huge.tolist() == [126] * 4


def test_bits_are_those_of_philox() -> None:
    """Element e has 16 bits of word e % 8 / 2 of block e / 8, scale b 20 of word b % 4 of b / 4."""

    def words(block: int) -> list[int]:
        return [int(word) for word in wlib_probe.philox([block, 0, 9, 7], 5, 1)]

    seed = 5 + (1 << 32)
    codes = wlib_probe.fp4_code_bits(seed, 7, 9, 24)
    expected = [words(e // 8)[e % 8 // 2] >> e % 2 * 16 & 0xFFFF for e in range(24)]
    assert codes == [bits << 6 | 32 for bits in expected]
    scales = wlib_probe.fp4_scale_bits(seed, 7, 9, 12)
    assert scales == [words(b // 4)[b % 4] >> 12 for b in range(12)]


def test_signs_are_the_bits_of_one_draw() -> None:
    words = wlib_probe.philox([0, 0, 0x80000000 | 3, 2], 11, 0)
    bits = [int(word) >> i & 1 for word in words for i in range(32)]
    for size in (16, 32, 64, 128):
        signs = wlib.fp4_signs(torch.tensor([11, 2]), size, offset=3)
        assert signs.dtype == torch.int8
        assert signs.tolist() == [1 - 2 * bit for bit in bits[:size]]
    assert torch.equal(wlib.fp4_signs(11, 128), wlib.fp4_signs(torch.tensor([11, 0]), 128))


def code_bits(q: wlib.FP4Tensor, seed: int, step: int, stream: int) -> Tensor:
    bits = wlib_probe.fp4_code_bits(seed, step, stream, q.shape[0] * q.shape[1])
    return torch.tensor(bits, dtype=torch.float64).view(q.shape) / 2**22


def lower_code(t: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude code of the grid value at or below t >= 0, and the part of the step above it."""
    low = (torch.searchsorted(reference.GRID, t.contiguous(), right=True) - 1).clamp(max=6)
    step = reference.GRID[low + 1] - reference.GRID[low]
    return low, (t - reference.GRID[low]) / step


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_stochastic_codes_equal_the_definition(format: str, axis: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 96) * 3
    rule = "three_quarters" if format == "mxfp4" else "amax"
    seed = torch.tensor([4, 6])
    q = wlib.fp4_quantize(x, format, 0, None, rule, "stochastic", seed, offset=5, axis=axis)
    matrix = x if axis == -1 else x.T.contiguous()
    if format == "mxfp4":
        exponent = reference.mx_exponent(matrix.double().unflatten(1, (-1, 32)), rule)
        multiplier = 0.75 * torch.exp2(-exponent).repeat_interleave(32, 1)
    else:  # no code can clip: the divisor is 6 * 16 / 17
        divisor = torch.tensor(96 / 17, dtype=torch.float32)
        top = matrix.abs().max() / (448 * divisor)
        assert q.global_scale == top
        amax = matrix.unflatten(1, (-1, 16)).abs().amax(-1) * (1 / top)
        scale = reference.nearest_e4m3((amax / divisor).double()).float()
        assert torch.equal(q.scales.float(), scale)
        multiplier = ((1 / top) / scale).repeat_interleave(16, 1)
    scaled = (matrix * multiplier.float()).double()
    assert scaled.abs().max() <= 6
    low, part = lower_code(scaled.abs())
    up = part + code_bits(q, 4, 6, 10 + (axis == 0)) >= 1
    assert torch.equal(unpack(q.codes), low + up + 8 * torch.signbit(scaled))


def test_ms_eden_equals_the_definition() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 96)
    x[3, 16:32] = 0
    x[4, 5] = torch.nan
    q = wlib.fp4_quantize(x, "nvfp4", rounding="ms_eden", seed=9, offset=1)
    divisor = torch.tensor(6.0) * 16 / 17 / 0.93
    blocks = x.unflatten(1, (-1, 16)).nan_to_num(0) * x.unflatten(1, (-1, 16)).isfinite().all(
        -1, keepdim=True
    )
    top = blocks.abs().max() / (256 * divisor)
    assert q.global_scale == top
    scale = reference.nearest_e4m3((blocks.abs().amax(-1) * (1 / top) / divisor).double())
    factor = torch.where(scale > 0, (1 / top) / scale.float(), 0.0)
    codes = reference.nearest_code((blocks * factor[..., None]).double())
    assert torch.equal(unpack(q.codes).unflatten(1, (-1, 16)) % 8, codes % 8)
    units = (blocks * (1 / top)).double()
    represented = torch.where(codes >= 8, -1.0, 1.0) * reference.GRID[codes % 8] * scale[..., None]
    common = (units * represented).sum(-1)
    corrected = torch.where(
        common > 0, scale * units.square().sum(-1) / common.clamp(min=1e-30), scale
    )
    bits = torch.tensor(wlib_probe.fp4_scale_bits(9, 0, 2, scale.numel())).view(scale.shape)
    grid = reference.e4m3_grid()
    low = (torch.searchsorted(grid, corrected, right=True) - 1).clamp(max=125)
    part = (corrected - grid[low]) / (grid[low + 1] - grid[low])
    distance = (part + bits.double() / 2**20 - 1).abs()
    up = part + bits.double() / 2**20 >= 1
    got = q.scales.float().double()
    assert got[4, 0].isnan()
    got[4, 0] = grid[low + up][4, 0]
    clear = distance > 1e-4  # of the sums in float32
    assert clear.float().mean() > 0.999
    assert torch.equal(got[clear], grid[low + up][clear])
    assert (got > scale).any()
    assert (got < scale).any()


def test_rows_and_columns_steps_offsets_and_seeds_draw_apart() -> None:
    x = torch.full((64, 64), 1.1)
    x.fill_diagonal_(6.0)  # the same scale everywhere, and x is symmetric
    rounding = {"scale_rule": "three_quarters", "rounding": "stochastic"}
    rows, columns = wlib.fp4_quantize(x, axis="both", seed=1, **rounding)
    others = [
        columns,
        wlib.fp4_quantize(x, seed=2, **rounding),
        wlib.fp4_quantize(x, seed=1, offset=1, **rounding),
        wlib.fp4_quantize(x, seed=torch.tensor([1, 1]), **rounding),
    ]
    for other in others:
        agree = (unpack(rows.codes) == unpack(other.codes)).float().mean()
        assert agree < 0.8
    assert torch.equal(rows.codes, wlib.fp4_quantize(x, seed=1, **rounding).codes)
    # A row's bits do not depend on the rows above: they are counted from the first element on.
    assert torch.equal(rows.codes[:32], wlib.fp4_quantize(x[:32], seed=1, **rounding).codes)


RANDOM_MSE = {
    ("mxfp4", "three_quarters", "stochastic"): (28.5e-3, 4 / 3),
    ("nvfp4", "amax", "stochastic"): (24.0e-3, 1.0),
    ("nvfp4", "amax", "ms_eden"): (9.5e-3, 1.0),
}


@pytest.mark.parametrize(("format", "rule", "rounding"), RANDOM_MSE)
def test_gaussian_error(format: str, rule: str, rounding: str) -> None:
    torch.manual_seed(0)
    bound, factor = RANDOM_MSE[format, rule, rounding]
    x, sigma = octave(256, 4096)
    if format == "nvfp4":
        x, sigma = x / sigma, torch.ones_like(sigma)
    q = wlib.fp4_quantize(x, format, scale_rule=rule, rounding=rounding, seed=1)
    error = ((q.dequantize() * factor - x) / sigma).square().mean().item()
    assert 0.93 * bound < error <= bound


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(
    ("format", "rule", "rounding", "size", "alpha", "slope", "last"),
    [
        ("mxfp4", "three_quarters", "stochastic", 128, 16 / 9, 2e-3, 2.6e-4),
        ("nvfp4", "amax", "stochastic", 128, 1.0, 2e-3, 2.1e-4),
        ("nvfp4", "amax", "ms_eden", 128, 1.0, 2e-3, 8.2e-5),
        ("mxfp4", "even", "nearest", 128, ALIGNMENT, 3e-3, 1.2e-4),
        ("mxfp4", "three_quarters", "nearest", 32, 16 / 9 * 1.009276**2, 3e-3, 1.5e-4),
    ],
)
def test_products_are_unbiased(
    format: str, rule: str, rounding: str, size: int, alpha: float, slope: float, last: float,
    heavy: bool,
) -> None:  # fmt: skip
    """Over 256 draws of signs and bits: slope 1, and an error that falls like 1 / draws."""
    torch.manual_seed(1)
    spread, tokens = torch.exp(torch.randn(512)), torch.exp(torch.randn(64, 1))
    x, w = torch.randn(64, 512), torch.randn(64, 512)
    x = x * spread * tokens if heavy else x
    exact = x.double() @ w.double().T
    total, errors = torch.zeros_like(exact), {}
    for draw in range(1, 257):
        seed = torch.tensor([5, draw])
        signs = wlib.fp4_signs(seed, size)
        bits = {} if rounding == "nearest" else {"rounding": rounding, "seed": seed}
        qx, qw = (wlib.fp4_quantize(t, format, size, signs, rule, **bits, offset=offset)
                  for offset, t in enumerate((x, w)))  # fmt: skip
        total += wlib.fp4_matmul(qx, qw, alpha, torch.float32).double()
        if draw in (1, 256):
            errors[draw] = ((total / draw - exact).square().sum() / exact.square().sum()).item()
    assert abs((total / 256 * exact).sum() / exact.square().sum() - 1) <= slope
    assert errors[256] <= last
    assert 0.75 < errors[1] / 256 / errors[256] < 1.25


def test_square_blocks_survive_the_transpose() -> None:
    torch.manual_seed(0)
    w = torch.randn(80, 48)
    q = wlib.fp4_quantize(w, "nvfp4", square=True)
    blocks = w.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).abs().amax(dim=(1, 3))
    top = w.abs().max() / (448 * 6)
    scale = reference.nearest_e4m3((blocks * (1 / top) / 6).double()).float()
    assert torch.equal(q.scales.float(), scale.repeat_interleave(16, 0))
    turned = wlib.fp4_requantize_t(q, "nvfp4", square=True, global_scale=q.global_scale)
    assert torch.equal(turned.dequantize(), q.dequantize().T)
    assert not torch.equal(wlib.fp4_requantize_t(q, "nvfp4").dequantize(), q.dequantize().T)
    # The last rows may fill less than a square.
    part, more = (wlib.fp4_quantize(w[:rows], "nvfp4", square=True, global_scale=top)
                  for rows in (64, 72))  # fmt: skip
    assert torch.equal(part.codes, more.codes[:64])
