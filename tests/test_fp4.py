"""FP4 quantisation, rotation and matmul on the CPU against the float64 reference."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import wlib
from wlib.reference import fp4 as reference

MX_RULES = ("even", "floor", "three_quarters", "quest", "quest_floor")
NV_RULES = ("amax", "four_over_six")
SIZES = (0, 16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unpack(codes: Tensor) -> Tensor:
    """int64 codes of packed ones."""
    return torch.stack((codes % 16, codes // 16), dim=2).flatten(1).long()


def random_signs(size: int) -> Tensor:
    return (torch.randint(0, 2, (size,)) * 2 - 1).to(torch.int8)


def dyadic(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian-like integers: every sum of a rotation is exact, and one rounding follows."""
    return (torch.randn(shape) * 64).round().clamp(-255, 255).to(dtype)


def rotated(x: Tensor, size: int, signs: Tensor | None) -> Tensor:
    """What the definition gives: exact sums of float32, times the float32 nearest to 1/sqrt."""
    if not size:
        return x.float()
    sums = reference.rotate(x, size, signs) * size**0.5
    return (sums.round().float() + 0.0) * torch.tensor(size**-0.5).float()  # no -0


def assert_quantised(q: wlib.FP4Tensor, expected: reference.Quantised) -> None:
    """Every code and scale, and what they stand for."""
    assert q.codes is not None
    assert torch.equal(unpack(q.codes), expected.codes)
    values = expected.values()
    if q.global_scale is not None:
        values = values.float() * q.global_scale
    got = q.dequantize()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rule", MX_RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_equals_the_reference(rule: str, size: int, dtype: torch.dtype) -> None:
    signs = random_signs(size) if size else None
    x = dyadic(37, 384, dtype=dtype)
    q = wlib.fp4_quantize(x, hadamard=size, signs=signs, scale_rule=rule)
    assert_quantised(q, reference.quantize_mx(rotated(x, size, signs), rule))


@pytest.mark.parametrize("rule", NV_RULES)
@pytest.mark.parametrize("size", SIZES)
def test_nvfp4_equals_the_reference(rule: str, size: int) -> None:
    signs = random_signs(size) if size else None
    x = dyadic(37, 384, dtype=torch.bfloat16)
    q = wlib.fp4_quantize(x, "nvfp4", size, signs, rule)
    values = rotated(x, size, signs)
    global_scale = reference.nv_global_scale(values, rule)
    assert q.global_scale == global_scale
    assert_quantised(q, reference.quantize_nv(values, rule, global_scale))
    given = wlib.fp4_quantize(x, "nvfp4", size, signs, rule, global_scale=global_scale * 1.3)
    assert_quantised(given, reference.quantize_nv(values, rule, global_scale * 1.3))


@pytest.mark.parametrize("size", SIZES[1:])
def test_codes_of_gaussian_data_differ_by_the_order_of_sums_only(size: int) -> None:
    x = torch.randn(256, 1024)
    q = wlib.fp4_quantize(x, hadamard=size)
    expected = reference.quantize_mx(reference.rotate(x, size), "even")
    assert torch.equal(q.dequantize()[:, ::32] * 0, expected.scale.float() * 0)
    differ = unpack(q.codes) != expected.codes
    assert differ.float().mean() <= 1e-4


@pytest.mark.parametrize(("size", "inverse"), [*itertools.product(SIZES[1:], (False, True))])
def test_hadamard(size: int, inverse: bool) -> None:
    signs = random_signs(size)
    x = torch.randn(3, 5, 2 * size)
    y = wlib.hadamard(x, size, signs, inverse)
    expected = reference.rotate(x, size, None if inverse else signs)
    if inverse:
        expected = (expected.unflatten(-1, (-1, size)) * signs.double()).flatten(-2)
    # log2(size) additions and one product, of values whose squares add up to those of x.
    bound = 9 * 2.0**-24 * x.double().unflatten(-1, (-1, size)).abs().sum(-1) / size**0.5
    assert ((y - expected).abs() <= bound.repeat_interleave(size, -1)).all()
    back = wlib.hadamard(y, size, signs, not inverse)
    torch.testing.assert_close(back, x)
    for dtype in DTYPES[1:]:
        half = wlib.hadamard(x.to(dtype), size, signs, inverse)
        again = wlib.hadamard(x.to(dtype).float(), size, signs, inverse)
        assert torch.equal(half, again.to(dtype))


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_columns_are_the_rows_of_the_transpose(format: str) -> None:
    x, signs = torch.randn(128, 192), random_signs(64)
    rows, columns = wlib.fp4_quantize(x, format, 64, signs, axis="both", return_mask=True)
    for got, matrix in ((rows, x), (columns, x.T.contiguous())):
        expected = wlib.fp4_quantize(matrix, format, 64, signs, return_mask=True)
        for name in ("codes", "scales", "mask", "global_scale"):
            a, b = getattr(got, name), getattr(expected, name)
            assert (a is None) == (b is None)
            assert a is None or torch.equal(
                a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8)
            )
    alone = wlib.fp4_quantize(x, format, 64, signs, axis=0)
    assert torch.equal(alone.codes, columns.codes)


CARRIERS = {"carrier_e4m3": (15, 6), "carrier_e5m2": (29, 13)}


@pytest.mark.parametrize("emit", CARRIERS)
def test_carriers_are_the_packed_values(emit: str) -> None:
    """Rows whose magnitudes span more binades than the window, with zero blocks."""
    binades, above = CARRIERS[emit]
    x = torch.randn(64, 1024) * torch.exp2(torch.randint(-30, 30, (64, 32)).float()
                                           ).repeat_interleave(32, 1)  # fmt: skip
    x[5] = 0
    x[6, 64:96] = 0
    q = wlib.fp4_quantize(x, emit=("fp4", emit))
    assert_quantised(q, reference.quantize_mx(x, "even", binades))
    folded = wlib.FP4Tensor("mxfp4", carrier=q.carrier, row_scale=q.row_scale)
    assert torch.equal(folded.dequantize(), q.dequantize())
    mantissa, exponent = torch.frexp(q.row_scale)
    assert (mantissa == 0.5).all()
    top = reference.quantize_mx(x, "even").scale.log2().amax(dim=1)
    assert torch.equal((exponent - 1).double(), top - above)
    alone = wlib.fp4_quantize(x, emit=(emit,))
    assert alone.codes is None
    assert torch.equal(alone.carrier.view(torch.uint8), q.carrier.view(torch.uint8))
    # The same window without a carrier, and none at all.
    assert torch.equal(wlib.fp4_quantize(x, window=binades).codes, q.codes)
    assert not torch.equal(wlib.fp4_quantize(x).codes, q.codes)


def test_zero_blocks() -> None:
    x = torch.zeros(2, 64)
    x[1, 0] = -0.0
    mx = wlib.fp4_quantize(x, emit=("fp4", "carrier_e4m3"))
    assert not mx.scales.any()
    assert mx.codes.flatten().tolist().count(0) == 63  # the other one is the code of -0
    assert not mx.dequantize().any()
    nv = wlib.fp4_quantize(x, "nvfp4")
    assert nv.global_scale == 0
    assert not nv.dequantize().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_reach_their_block(value: float) -> None:
    x = torch.randn(4, 128)
    x[2, 40] = value
    mx = wlib.fp4_quantize(x, emit=("fp4", "carrier_e5m2"))
    bad = torch.zeros(4, 128, dtype=torch.bool)
    bad[2, 32:64] = True
    assert torch.equal(mx.dequantize().isnan(), bad)
    assert not mx.codes[2, 16:32].any()
    assert torch.equal(mx.carrier.float().isnan(), bad)
    nv = wlib.fp4_quantize(x, "nvfp4", scale_rule="four_over_six")
    bad[2, 32:64] = False
    bad[2, 32:48] = True
    assert torch.equal(nv.dequantize().isnan(), bad)
    turned = wlib.fp4_quantize(x, hadamard=64).dequantize().isnan()
    assert turned[2, :64].all()
    assert turned.sum() == 64


@pytest.mark.parametrize("value", [3.4e38, 1e-38, 1e-45, -(2.0**-127)])
def test_huge_and_tiny_blocks(value: float) -> None:
    x = torch.full((1, 32), value)
    for rule in ("even", "floor", "three_quarters"):
        q = wlib.fp4_quantize(x, scale_rule=rule)
        assert_quantised(q, reference.quantize_mx(x, rule))
        assert q.dequantize().isfinite().all()


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_swizzled_scales(format: str) -> None:
    x = torch.randn(130, 160)
    plain = wlib.fp4_quantize(x, format)
    swizzled = wlib.fp4_quantize(x, format, swizzle="128x4")
    per_row = plain.scales.shape[1]
    flat, atoms = swizzled.scales.view(torch.uint8).flatten(), -(-per_row // 4)
    used = torch.zeros_like(flat, dtype=torch.bool)
    for r, k in itertools.product(range(130), range(per_row)):
        at = (r // 128 * atoms + k // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + k % 4
        used[at] = True
        assert flat[at] == plain.scales.view(torch.uint8)[r, k]
    assert not flat[~used].any()
    assert torch.equal(swizzled.dequantize(), plain.dequantize())


def test_mask_marks_what_does_not_clip() -> None:
    x = torch.randn(16, 256)
    q = wlib.fp4_quantize(x, scale_rule="quest_floor", return_mask=True)
    scale = reference.quantize_mx(x, "quest_floor").scale.repeat_interleave(32, 1)
    bits = torch.stack([q.mask >> i & 1 for i in range(8)], dim=2).flatten(1).bool()
    assert torch.equal(bits, x.double().abs() / scale < 6)
    assert 0.9 < bits.float().mean() < 0.97  # the released rule clips 6 %
    edge = torch.ones(1, 32)
    edge[0, 0] = 6  # the scale is 1: the largest code itself counts as clipped
    assert wlib.fp4_quantize(edge, return_mask=True).mask.tolist() == [[254, 255, 255, 255]]


def test_strided_rows() -> None:
    x = torch.randn(40, 200)
    assert torch.equal(wlib.fp4_quantize(x[:, 8:72]).codes,
                       wlib.fp4_quantize(x[:, 8:72].contiguous()).codes)  # fmt: skip
    assert wlib.fp4_quantize(torch.zeros(0, 64)).codes.shape == (0, 32)
    assert wlib.fp4_quantize(torch.zeros(3, 0)).codes.shape == (3, 0)
    assert wlib.fp4_quantize(torch.zeros(0, 64), "nvfp4").global_scale == 0


# Mean squared error of N(0, sigma) with sigma over one octave, relative to sigma: the bars of the
# design, each a little above what the rule reaches.
MSE = {
    ("mxfp4", "even"): 12.9e-3,
    ("mxfp4", "floor"): 13.8e-3,
    ("mxfp4", "quest"): 13.6e-3,
    ("mxfp4", "quest_floor"): 22.8e-3,
    ("mxfp4", "three_quarters"): 14.1e-3,
    ("nvfp4", "amax"): 9.2e-3,
    ("nvfp4", "four_over_six"): 7.7e-3,
}


def octave(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    sigma = torch.exp2(torch.linspace(0, 1, rows + 1)[:-1])[:, None]
    return torch.randn(rows, columns) * sigma, sigma


@pytest.mark.parametrize(("format", "rule"), MSE)
def test_gaussian_error(format: str, rule: str) -> None:
    x, sigma = octave(256, 4096)
    if format == "nvfp4":  # one scale for the tensor: the octave is that of its size
        x = x / sigma
        sigma = torch.ones_like(sigma)
    values = wlib.fp4_quantize(x, format, scale_rule=rule).dequantize()
    if rule == "three_quarters":
        values = values * (4 / 3)
    error = ((values - x) / sigma).square().mean().item()
    assert 0.93 * MSE[format, rule] < error <= MSE[format, rule]


def pairs() -> Iterator[tuple[str, dict[str, object], dict[str, object]]]:
    for emit in ("carrier_e4m3", "carrier_e5m2"):
        yield "fold8", {"emit": (emit,)}, {"emit": ("carrier_e4m3",)}
    yield "fold8", {}, {"emit": ("fp4", "carrier_e4m3")}
    yield "bf16", {}, {"scale_rule": "quest"}
    yield "bf16", {"format": "nvfp4"}, {"format": "nvfp4", "scale_rule": "four_over_six"}
    yield "exact32", {}, {}
    yield "auto", {"hadamard": 32}, {"hadamard": 32}
    yield "auto", {"format": "nvfp4"}, {}


@pytest.mark.parametrize(("mode", "a", "b"), list(pairs()))
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_matmul(
    mode: str, a: dict[str, object], b: dict[str, object], out_dtype: torch.dtype
) -> None:
    qa, qb = (wlib.fp4_quantize(torch.randn(n, 320), **options)
              for n, options in ((33, a), (70, b)))  # fmt: skip
    y = wlib.fp4_matmul(qa, qb, 0.75, out_dtype, mode)
    left, right = qa.dequantize().double(), qb.dequantize().double()
    exact = 0.75 * left @ right.T
    # 320 additions, the scales and alpha in float32; one rounding to the output type.
    bound = 328 * 2.0**-24 * (left.abs() @ right.abs().T)
    info = torch.finfo(out_dtype)
    bound = bound + (exact.abs() + bound) * info.eps / 2 + info.tiny
    assert y.dtype == out_dtype
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("mode", ["fold8", "bf16", "exact32"])
def test_matmul_is_exact_where_float32_is(mode: str) -> None:
    """Codes of whole numbers and scales 2^-3 .. 2^3: every partial sum is exact."""

    def values(rows: int) -> Tensor:
        codes = torch.tensor([0.0, 1, 2, 3, 4, 6, -1, -2, -3, -4, -6])
        blocks = codes[torch.randint(0, 11, (rows, 8, 32))]
        blocks[..., 0] = 6
        return (blocks * torch.exp2(torch.randint(-3, 4, (rows, 8, 1)).float())).flatten(1)

    a, b = values(19), values(40)
    emit = ("fp4", "carrier_e4m3") if mode == "fold8" else ("fp4",)
    qa, qb = wlib.fp4_quantize(a, emit=emit), wlib.fp4_quantize(b, emit=emit)
    assert torch.equal(qa.dequantize(), a)
    y = wlib.fp4_matmul(qa, qb, 2.0, torch.float32, mode)
    assert torch.equal(y.double(), 2 * a.double() @ b.double().T)


def test_matmul_holds_b_in_parts() -> None:
    a, b = (wlib.fp4_quantize(torch.randn(rows, 1 << 15)) for rows in (3, 70))
    y = wlib.fp4_matmul(a, b, out_dtype=torch.float32)
    exact = a.dequantize().double() @ b.dequantize().double().T
    assert ((y - exact).abs() <= 1e-4 * exact.abs() + 1e-2).all()


def test_matmul_of_nothing() -> None:
    empty, some = wlib.fp4_quantize(torch.zeros(0, 64)), wlib.fp4_quantize(torch.ones(3, 64))
    assert wlib.fp4_matmul(empty, some).shape == (0, 3)
    assert empty.dequantize().shape == (0, 64)
    carrier = wlib.fp4_quantize(torch.zeros(0, 64), emit=("carrier_e4m3",))
    assert carrier.dequantize().shape == (0, 64)
    assert wlib.fp4_matmul(carrier, some, mode="fold8").shape == (0, 3)
    assert wlib.fp4_matmul(some, empty).shape == (3, 0)
    none = wlib.fp4_quantize(torch.zeros(3, 0))
    assert torch.equal(wlib.fp4_matmul(none, none), torch.zeros(3, 3, dtype=torch.bfloat16))


def test_a_nan_reaches_its_row_of_the_product() -> None:
    a, b = torch.randn(3, 64), torch.randn(5, 64)
    a[1, 7] = torch.nan
    for emit in (("fp4",), ("carrier_e4m3",)):
        qa, qb = wlib.fp4_quantize(a, emit=emit), wlib.fp4_quantize(b, emit=emit)
        nan = wlib.fp4_matmul(qa, qb).isnan()
        assert nan[1].all()
        assert nan.sum() == 5


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_requantize_t_is_quantising_the_transposed_values(format: str) -> None:
    signs = random_signs(128)
    q = wlib.fp4_quantize(torch.randn(256, 96), format)
    for out in ("mxfp4", "nvfp4"):
        got = wlib.fp4_requantize_t(q, out, 128, signs)
        expected = wlib.fp4_quantize(q.dequantize(), out, 128, signs, axis=0)
        assert torch.equal(got.codes, expected.codes)
        assert torch.equal(got.scales.view(torch.uint8), expected.scales.view(torch.uint8))
        assert got.global_scale == expected.global_scale


ALIGNMENT = 1.00976**2  # undoes what rounding to nearest takes off both operands (scale rule even)


def test_aligned_rounding_is_nearly_unbiased_over_random_signs() -> None:
    """Products of rotated operands, averaged over draws of signs: slope 1, error like 1 / draws."""
    torch.manual_seed(1)
    spread = torch.exp(torch.randn(512))
    x, w = torch.randn(64, 512) * spread, torch.randn(64, 512)
    exact = x.double() @ w.double().T
    total = torch.zeros_like(exact)
    errors = {}
    for draw in range(1, 257):
        signs = random_signs(128)
        qx, qw = (wlib.fp4_quantize(t, hadamard=128, signs=signs) for t in (x, w))
        total += wlib.fp4_matmul(qx, qw, ALIGNMENT, torch.float32).double()
        if draw in (1, 16, 256):
            errors[draw] = ((total / draw - exact).square().sum() / exact.square().sum()).item()
    slope = ((total / 256 * exact).sum() / exact.square().sum()).item()
    assert abs(slope - 1) <= 3e-3
    assert errors[1] < 4e-2
    assert errors[16] < errors[1] / 16 * 1.25
    assert errors[256] < 2e-4


SCRIPT = """
import hashlib, torch, wlib
torch.manual_seed(0)
x, digest = torch.randn(96, 256), hashlib.sha256()
for size in (0, 32, 128):
    for rule in ("even", "quest", "three_quarters"):
        q = wlib.fp4_quantize(x, hadamard=size, scale_rule=rule, emit=("fp4", "carrier_e4m3"))
        for t in (q.codes, q.scales, q.carrier.view(torch.uint8)):
            digest.update(t.numpy().tobytes())
    for rule in ("amax", "four_over_six"):
        q = wlib.fp4_quantize(x, "nvfp4", size, scale_rule=rule)
        digest.update(q.codes.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "WLIB_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa in ("baseline", "avx2", "avx512", "avx512vnni")
    }
    assert len(digests) == 1
