"""The INT4 format and its two ops against the float64 reference."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wlib
from wlib.reference import int4fp8 as reference

OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Every M route of the CPU kernels, and one row on either side of a GPU token tile.
TOKENS = (1, 2, 15, 16, 17, 64, 65)
# (K, group size): group below, at and above a tile, the whole row, K off the tile grid.
GROUPS = ((32, 32), (64, 64), (96, 96), (128, 128), (160, 32), (160, 160), (192, 64), (320, 320),
          (384, 128), (512, 256), (768, 384))  # fmt: skip


def random_weight(
    n: int, k: int, group_size: int, zero_point: bool = False, channel_scale: bool = False
) -> wlib.Int4Weight:
    """All codes, scales around 1/50; zero points need not be integers."""
    groups = k // group_size
    return wlib.Int4Weight(
        codes=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        group_scale=(torch.randn(n, groups) / 50).bfloat16(),
        zero_point=torch.randn(n, groups) * 4 if zero_point else None,
        channel_scale=torch.rand(n) + 0.5 if channel_scale else None,
    )


def exact_weight(n: int, k: int, group_size: int) -> wlib.Int4Weight:
    """Every code -8..7 and power-of-two scales: float32 sums of small integers are exact."""
    groups = k // group_size
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    codes[:, :8] = torch.arange(0x08, 0x108, 0x22).to(torch.uint8)
    return wlib.Int4Weight(
        codes=codes,
        group_scale=torch.exp2(torch.randint(-3, 4, (n, groups)).float()).bfloat16(),
        zero_point=torch.randint(-8, 8, (n, groups)).float(),
        channel_scale=torch.exp2(torch.randint(-2, 3, (n,)).float()),
    )


def exact_activations(m: int, k: int) -> tuple[Tensor, Tensor]:
    """Integers -2..2: sums over 128 stay below 2^12 units, as FP8 tensor cores need."""
    x = torch.randint(-2, 3, (m, k)).to(torch.float8_e4m3fn)
    return x, torch.exp2(torch.randint(-4, 3, (m,)).float())


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def packed_by_definition(weight: wlib.Int4Weight) -> bytes:
    """The layout written out byte by byte."""
    n, k, size = weight.n, weight.k, weight.group_size
    per_tile = 1 if size % 128 == 0 or size == k else 128 // size
    codes = weight.codes.tolist()
    out = bytearray()

    def code(row: int, column: int) -> int:
        byte = codes[row][column // 2] if row < n and column < k else 0
        nibble = byte >> 4 if column % 2 else byte & 15
        return nibble - 16 if nibble > 7 else nibble

    def byte(a: int, b: int) -> int:
        mag_a, mag_b = (q if q >= 0 else -q - 1 for q in (a, b))
        return (a < 0) << 7 | mag_b << 4 | mag_a << 1 | (b < 0)

    def group_value(values: Tensor, row: int, column: int) -> float:
        return values[row, column // size].item() if row < n and column < k else 0.0

    for block, tile in itertools.product(range(-(-n // 64)), range(-(-k // 128))):
        for half, warp, lane, i in itertools.product(range(2), range(4), range(32), range(16)):
            row = block * 64 + warp * 16 + lane // 4
            column = tile * 128 + half * 64 + i // 8 * 32 + i // 4 % 2 * 16 + lane % 4 * 4 + i % 4
            out.append(byte(code(row, column), code(row + 8, column)))
        order = [
            (block * 64 + pair // 8 * 16 + pair % 8 + 8 * h, tile * 128 + p * (128 // per_tile))
            for p, pair, h in itertools.product(range(per_tile), range(32), range(2))
        ]
        for row, column in order:
            out += struct.pack("<f", group_value(weight.group_scale, row, column))[2:]
        if weight.zero_point is not None:
            out += b"".join(struct.pack("<f", group_value(weight.zero_point, *at)) for at in order)
        if tile == -(-k // 128) - 1:
            for row in range(block * 64, block * 64 + 64):
                channel = weight.channel_scale
                value = 1.0 if channel is None else channel[min(row, n - 1)].item()
                out += struct.pack("<f", value if row < n else 0.0)
    return bytes(out)


@pytest.mark.parametrize(("k", "group_size"), GROUPS)
@pytest.mark.parametrize(
    ("n", "options"), [(1, {}), (70, {"zero_point": True}), (64, {"channel_scale": True})]
)
def test_pack_follows_the_layout(n: int, k: int, group_size: int, options: dict[str, bool]) -> None:
    weight = random_weight(n, k, group_size, **options)
    packed = weight.pack()
    assert packed.data.is_contiguous()
    assert bytes(packed.data.flatten().tolist()) == packed_by_definition(weight)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 257),
    k_and_group=st.sampled_from(GROUPS),
    zero_point=st.booleans(),
    channel_scale=st.booleans(),
)
def test_unpack_inverts_pack(
    n: int, k_and_group: tuple[int, int], zero_point: bool, channel_scale: bool
) -> None:
    weight = random_weight(n, *k_and_group, zero_point, channel_scale)
    weight.group_scale[0, 0] = torch.tensor(0x7F81, dtype=torch.int16).view(torch.bfloat16)  # a NaN
    weight.group_scale[-1, -1] = -0.0
    back = weight.pack().unpack()
    for name in ("codes", "group_scale", "zero_point", "channel_scale"):
        before, after = getattr(weight, name), getattr(back, name)
        if before is None:
            assert after is None
        else:
            assert_same_bits(after, before)


def test_pack_reads_strided_tensors() -> None:
    weight = random_weight(64, 256, 128, True, True)
    strided = wlib.Int4Weight(
        codes=weight.codes.T.contiguous().T,
        group_scale=weight.group_scale.repeat(1, 2)[:, :2],
        zero_point=weight.zero_point.T.contiguous().T,
        channel_scale=weight.channel_scale.repeat_interleave(2)[::2],
    )
    assert_same_bits(strided.pack().data, weight.pack().data)


def assert_nearest_codes(weight: wlib.Int4Weight, w: Tensor) -> None:
    """No code -8..7 comes closer to any element of w, float32 [N, K], than the one chosen."""
    scale = weight.group_scale.double().repeat_interleave(weight.group_size, dim=1)
    levels = torch.arange(-8, 8) * scale[..., None]
    distance = (w.double()[..., None] - levels).abs().amin(dim=2)
    error = (w.double() - weight.dequantize().double()).abs()
    assert (error <= distance + 1e-6 * scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("group_size", [32, 128])
def test_quantize_rounds_to_the_nearest_code(dtype: torch.dtype, group_size: int) -> None:
    w = torch.randn(48, 256, dtype=dtype)
    weight = wlib.Int4Weight.quantize(w, group_size)
    absmax = w.float().abs().view(48, -1, group_size).amax(dim=2)
    assert_same_bits(weight.group_scale, (absmax / 8).bfloat16())
    assert_nearest_codes(weight, w.float())
    assert (weight.codes & 15 == 8).any()
    assert (weight.codes >> 4 == 8).any()


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-39, 3e38])
def test_quantize_of_vanishing_and_huge_groups(value: float) -> None:
    w = torch.randn(2, 256)
    w[0, :128] = value
    weight = wlib.Int4Weight.quantize(w)
    assert_nearest_codes(weight, w)
    if abs(value) < 1e-44:  # absmax/8 rounds to zero
        assert weight.group_scale[0, 0] == 0
        assert not weight.codes[0, :64].any()


def test_clip_search_lowers_the_error_of_every_group() -> None:
    w = torch.randn(64, 512)

    def error(clip_search: bool) -> Tensor:
        dequantized = wlib.Int4Weight.quantize(w, clip_search=clip_search).dequantize()
        return (dequantized - w).square().view(64, -1, 128).sum(dim=2)

    assert (error(True) <= error(False)).all()
    assert error(True).sum() < 0.95 * error(False).sum()


@pytest.mark.parametrize("options", [{}, {"zero_point": True}, {"channel_scale": True}])
def test_dequantize_is_what_the_reference_multiplies_with(options: dict[str, bool]) -> None:
    weight = random_weight(33, 192, 64, **options)
    identity = torch.eye(192).to(torch.float8_e4m3fn)
    exact = reference.int4fp8_gemm(identity, weight, torch.ones(192)).y.T
    torch.testing.assert_close(weight.dequantize().double(), exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize(("k", "group_size"), GROUPS)
def test_gemm_is_exact_on_a_grid(k: int, group_size: int, out_dtype: torch.dtype) -> None:
    for m, n in zip(TOKENS, (64, 1, 257, 63, 128, 65, 17), strict=True):
        weight = exact_weight(n, k, group_size)
        xq, xs = exact_activations(m, k)
        bias = torch.randint(-8, 9, (n,)) / 8
        exact = reference.int4fp8_gemm(xq, weight, xs, bias).y
        assert torch.equal(exact, exact.float().double())  # else the next line demands too much
        y = wlib.int4fp8_gemm(xq, weight.pack(), xs, bias, out_dtype)
        assert_same_bits(y, exact.to(out_dtype))


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize(("k", "group_size"), [(32, 32), (1024, 128), (512, 64), (160, 160)])
@pytest.mark.parametrize("zero_point", [False, True])
def test_gemm_is_within_its_error_bound(
    k: int, group_size: int, zero_point: bool, out_dtype: torch.dtype
) -> None:
    for m, n in itertools.product(TOKENS, (1, 100)):
        weight = random_weight(n, k, group_size, zero_point, channel_scale=True)
        xq, xs = wlib.fp8_quantize(torch.randn(m, k))
        for bias in (None, torch.randn(n), torch.randn(n).to(out_dtype)):
            exact = reference.int4fp8_gemm(xq, weight, xs, bias)
            y = wlib.int4fp8_gemm(xq, weight.pack(), xs, bias, out_dtype)
            assert ((y.double() - exact.y).abs() <= exact.bound(k, out_dtype)).all()


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("zero_point", [False, True])
def test_gemm_errs_no_more_than_torch(m: int, zero_point: bool) -> None:
    weight = random_weight(100, 1024, 128, zero_point, channel_scale=True)
    xq, xs = wlib.fp8_quantize(torch.randn(m, 1024))
    exact = reference.int4fp8_gemm(xq, weight, xs).y
    y = wlib.int4fp8_gemm(xq, weight.pack(), xs, out_dtype=torch.float32)
    torch_y = torch.nn.functional.linear(xq.float() * xs[:, None], weight.dequantize())
    assert (y - exact).norm() <= 2 * (torch_y - exact).norm()
    assert (y - exact).norm() <= 1e-6 * exact.norm()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    m=st.integers(0, 70),
    n=st.integers(1, 257),
    k_and_group=st.sampled_from(GROUPS),
    x_exponent=st.integers(-40, 40),
    scale_exponent=st.integers(-40, 40),
    zero_point=st.booleans(),
)
def test_gemm_with_any_size_and_scale(
    m: int,
    n: int,
    k_and_group: tuple[int, int],
    x_exponent: int,
    scale_exponent: int,
    zero_point: bool,
) -> None:
    k = k_and_group[0]
    weight = random_weight(n, *k_and_group, zero_point)
    weight.group_scale.mul_(2.0**scale_exponent)
    weight.group_scale[n // 2] *= 1000  # one hot row
    xq, xs = wlib.fp8_quantize(torch.randn(m, k) * 2.0**x_exponent)
    exact = reference.int4fp8_gemm(xq, weight, xs)
    y = wlib.int4fp8_gemm(xq, weight.pack(), xs, out_dtype=torch.float32)
    assert ((y.double() - exact.y).abs() <= exact.bound(k, torch.float32)).all()


def test_e4m3_subnormals_and_negative_zero_count() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[127, 255]] = 0  # NaN has its own test
    xq = codes.view(torch.float8_e4m3fn)[None]
    weight = exact_weight(40, 256, 128)
    xs = torch.ones(1)
    exact = reference.int4fp8_gemm(xq, weight, xs)
    for m in (1, 64):
        y = wlib.int4fp8_gemm(xq.expand(m, -1), weight.pack(), xs.expand(m).contiguous(),
                              out_dtype=torch.float32)  # fmt: skip
        assert ((y.double() - exact.y).abs() <= exact.bound(256, torch.float32)).all()
    subnormal = torch.full((1, 256), 1, dtype=torch.uint8).view(torch.float8_e4m3fn)  # 2^-9
    y = wlib.int4fp8_gemm(subnormal, weight.pack(), xs, out_dtype=torch.float32)
    assert_same_bits(y, reference.int4fp8_gemm(subnormal, weight, xs).y.float())


@pytest.mark.parametrize("m", [4, 40])
@pytest.mark.parametrize("where", ["x", "x_scale", "scale", "zero_point", "channel_scale", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_reach_their_row_or_column_only(m: int, where: str, value: float) -> None:
    n, k = 70, 160
    weight = random_weight(n, k, 32, zero_point=True, channel_scale=True)
    xq, xs = wlib.fp8_quantize(torch.randn(m, k))
    bias = torch.randn(n)
    hit = torch.zeros(m, n, dtype=torch.bool)
    if where == "x":
        xq[2, 100] = torch.nan  # E4M3 has no infinity
        hit[2] = True
    elif where == "x_scale":
        xs[2] = value
        hit[2] = True
    else:
        tensors = {"scale": weight.group_scale, "zero_point": weight.zero_point, "bias": bias,
                   "channel_scale": weight.channel_scale}  # fmt: skip
        tensors[where][9] = value
        hit[:, 9] = True
    y = wlib.int4fp8_gemm(xq, weight.pack(), xs, bias, torch.float32)
    clean = ~hit
    exact = reference.int4fp8_gemm(xq, weight, xs, bias)
    assert not y[hit].isfinite().any()
    if value != value or where == "x":
        assert y[hit].isnan().all()
    if where in ("x_scale", "bias"):  # one product or sum with Inf: its sign is known
        assert_same_bits(y[hit], exact.y[hit].float())
    assert ((y.double() - exact.y).abs() <= exact.bound(k, torch.float32))[clean].all()


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize("m", [0, 1, 33])
def test_out_is_written_whole_and_nothing_around_it(m: int, out_dtype: torch.dtype) -> None:
    n, k, guard = 67, 192, 64
    weight = random_weight(n, k, 64).pack()
    xq, xs = wlib.fp8_quantize(torch.randn(m, k))
    buffer = torch.full((m * n + 2 * guard,), torch.nan, dtype=out_dtype)
    out = buffer[guard : guard + m * n].view(m, n)
    assert wlib.int4fp8_gemm(xq, weight, xs, out=out).data_ptr() == out.data_ptr()
    assert_same_bits(out, wlib.int4fp8_gemm(xq, weight, xs, out_dtype=out_dtype))
    assert out.isfinite().all()
    assert buffer[:guard].isnan().all()
    assert buffer[guard + m * n :].isnan().all()


@pytest.mark.parametrize("m", [5, 50])
def test_rows_of_x_may_lie_apart(m: int) -> None:
    weight = random_weight(20, 128, 128).pack()
    wide = torch.randn(m, 400)
    apart = wide[:, 16:144]
    xq, xs = wlib.fp8_quantize(apart)
    assert_same_bits(xq, wlib.fp8_quantize(apart.contiguous())[0])
    padded = torch.cat((xq, xq), dim=1)[:, :128]
    assert_same_bits(wlib.int4fp8_gemm(padded, weight, xs), wlib.int4fp8_gemm(xq, weight, xs))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 0, 3), (2, 1, 9)])
def test_leading_dimensions(lead: tuple[int, ...]) -> None:
    weight = random_weight(20, 128, 128).pack()
    xq, xs = wlib.fp8_quantize(torch.randn(*lead, 128))
    y = wlib.int4fp8_gemm(xq, weight, xs)
    flat = wlib.int4fp8_gemm(xq.view(-1, 128), weight, xs.view(-1))
    assert_same_bits(y, flat.view(*lead, 20))


@pytest.mark.parametrize("m", [3, 30])
def test_no_columns_leave_the_bias(m: int) -> None:
    ones = torch.ones(1, 64).view(torch.uint8)  # a row block without tiles
    x = torch.empty(m, 0, dtype=torch.float8_e4m3fn)
    bias = torch.randn(40)
    y = torch.ops.wlib.int4fp8_gemm(
        x, ones, torch.ones(m), n=40, group_size=128, bias=bias, out_dtype=torch.float32
    )
    assert_same_bits(y, bias.expand(m, 40))


@pytest.mark.parametrize("m", [1, 64])
def test_repeats_give_the_same_bits(m: int) -> None:
    weight = random_weight(200, 512, 128).pack()
    xq, xs = wlib.fp8_quantize(torch.randn(m, 512))
    first = wlib.int4fp8_gemm(xq, weight, xs, out_dtype=torch.float32)
    for _ in range(5):
        assert_same_bits(wlib.int4fp8_gemm(xq, weight, xs, out_dtype=torch.float32), first)


def test_reference_decodes_e4m3() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    decoded = reference.decode_e4m3(codes)
    torch.testing.assert_close(decoded, codes.double(), rtol=0, atol=0, equal_nan=True)
