"""The values the kernels compute, against float64 and against the CPU."""

from dataclasses import replace

import pytest
import torch
from gpu_problems import TILES, Problem, exact_problem, random_problem

import wlib

M = (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 200)
SHAPES = (  # n, k, group_size
    (1, 32, 32),
    (1, 128, 128),
    (63, 64, 64),
    (63, 224, 32),
    (65, 96, 96),
    (65, 320, 64),
    (100, 160, 160),
    (129, 256, 256),
    (384, 384, 128),
    (384, 1536, 32),
    (64, 16384, 128),
    (4096, 4096, 64),
    (4096, 4096, 128),
    (4096, 4096, 4096),
)
OPTIONS = (
    {},
    {"zero_point": True, "bias_dtype": torch.float32, "out_dtype": torch.float32},
    {"channel_scale": True, "bias_dtype": torch.float16, "out_dtype": torch.float16},
    {"zero_point": True, "channel_scale": True, "bias_dtype": torch.bfloat16},
)


@pytest.mark.parametrize("options", OPTIONS, ids=("plain", "zero", "channel", "all"))
@pytest.mark.parametrize("shape", SHAPES, ids=[f"{n}-{k}-{g}" for n, k, g in SHAPES])
def test_exact(shape: tuple[int, int, int], options: dict[str, object]) -> None:
    """Where float32 is exact, the GPU gives the float64 result at every M; so does the CPU."""
    on_cpu = exact_problem(max(M), *shape, seed=sum(shape), **options)
    problem = on_cpu.to("cuda")
    packed = problem.weight.pack()
    expected = problem.expected()
    for m in M:
        y = problem.first(m).solve(packed)
        assert torch.equal(y, expected[:m]), f"M={m}: {mismatch(y, expected[:m])}"
    assert torch.equal(on_cpu.first(9).solve(), expected[:9].cpu())


@pytest.mark.parametrize("zero_point", [False, True], ids=("symmetric", "zero"))
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("tile", TILES)
def test_tiles_of_many_tokens(tile: str, group_size: int, zero_point: bool) -> None:
    """Every instance of the cooperative kernel, several tiles per CTA, tails in M and N."""
    m, n, k = TILES[tile]
    for columns in (k, 5 * k + 128):  # fewer and more k tiles than stages
        problem = exact_problem(m, n, columns, group_size, zero_point=zero_point).to("cuda")
        y, expected = problem.solve(), problem.expected()
        assert torch.equal(y, expected), mismatch(y, expected)


def mismatch(y: torch.Tensor, expected: torch.Tensor) -> str:
    """Where y differs first and how often."""
    wrong = (y != expected).nonzero()
    m, n = wrong[0].tolist()
    return f"{len(wrong)} of {y.numel()}, first y[{m}, {n}] = {y[m, n]}, expected {expected[m, n]}"


def test_packing_on_the_gpu_gives_the_bytes_of_the_cpu() -> None:
    problem = exact_problem(1, 129, 320, 64, zero_point=True, channel_scale=True)
    assert torch.equal(problem.to("cuda").weight.pack().data.cpu(), problem.weight.pack().data)


@pytest.mark.parametrize("zero_point", [False, True], ids=("symmetric", "zero"))
@pytest.mark.parametrize("group_size", [32, 64, 128, 4096])
@pytest.mark.parametrize("m", [1, 16, 64, 200])
def test_random(m: int, group_size: int, zero_point: bool) -> None:
    """Float32 sums per group, and FP8 products added as the tensor cores do.

    They line up the 32 products and the sum so far by the largest and cut below its 13th bit. With
    normal operands the largest of 33 stays under 16 times their mean, so each step costs less than
    2^-9 of the absolute values it adds.
    """
    problem = random_problem(m, 384, 4096, group_size, zero_point=zero_point, seed=m + group_size)
    y, exact = problem.solve().double(), problem.reference()
    error = (y - exact.y).abs()
    assert (error <= exact.bound(4096, torch.float32) + 2**-9 * exact.magnitude).all()
    assert error.norm() <= 2e-3 * exact.y.norm()


@pytest.mark.parametrize("m", [5, 64, 100])
def test_nan_and_inf_reach_their_row_or_column_alone(m: int) -> None:
    clean = exact_problem(m, 129, 512, 128, zero_point=True, bias_dtype=torch.float32).to("cuda")
    expected = clean.expected()
    weight = clean.weight

    def poisoned(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
        copy = tensor.float().clone()
        copy[index] = value
        return copy.to(tensor.dtype)

    row, column = (
        torch.zeros_like(expected, dtype=torch.bool),
        torch.zeros_like(expected, dtype=torch.bool),
    )
    row[3], column[:, 70] = True, True
    inf, nan = torch.inf, torch.nan
    cases: dict[str, tuple[Problem, torch.Tensor]] = {
        "x": (replace(clean, x=poisoned(clean.x, (3, 401), nan)), row)
    }
    for value in (nan, inf, -inf):
        scale = poisoned(weight.group_scale, (70, 2), value)
        zero = poisoned(weight.zero_point, (70, 1), value)
        cases |= {
            f"x_scale {value}": (replace(clean, x_scale=poisoned(clean.x_scale, (3,), value)), row),
            f"bias {value}": (replace(clean, bias=poisoned(clean.bias, (70,), value)), column),
            f"scale {value}": (replace(clean, weight=replace(weight, group_scale=scale)), column),
            f"zero {value}": (replace(clean, weight=replace(weight, zero_point=zero)), column),
        }
    for name, (problem, hit) in cases.items():
        y = problem.solve()
        assert not y[hit].isfinite().any(), name
        assert torch.equal(y[~hit], expected[~hit]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 257), (7, 384), (2, 3, 1000), (64, 4096), (5, 14336)]
)
def test_fp8_quantize_gives_the_bits_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(shape[-1])
    x = torch.randn(shape, generator=draw)
    flat = x.view(-1, shape[-1])
    flat *= torch.exp2(torch.randint(-24, 12, (len(flat), 1), generator=draw).float())
    flat[0, ::3] = 0
    if len(flat) > 2:
        flat[1] = 0
        flat[2, 0] = 60000  # everything else is subnormal or zero beside it
    x = x.to(dtype)
    codes, scale = wlib.fp8_quantize(x.cuda())
    expected_codes, expected_scale = wlib.fp8_quantize(x)
    assert torch.equal(scale.cpu(), expected_scale)
    assert torch.equal(codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("shape", [(1, 384), (7, 128), (2, 3, 4096), (130, 1152)])
def test_fp8_group_sums_give_the_bits_of_the_cpu(shape: tuple[int, ...], group_size: int) -> None:
    draw = torch.Generator().manual_seed(shape[-1])
    xq = torch.randint(0, 127, shape, dtype=torch.uint8, generator=draw).view(torch.float8_e4m3fn)
    sums = wlib.fp8_group_sums(xq.cuda(), group_size)
    assert torch.equal(sums.cpu(), wlib.fp8_group_sums(xq, group_size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 8), (9, 384), (3, 1001), (64, 4096), (5, 28672), (2, 65536)])
def test_fused_quantisers_give_the_bits_of_the_cpu(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(shape[-1])
    x, residual = (torch.randn(shape, generator=draw).to(dtype) * 4 for _ in range(2))
    weight = torch.randn(shape[-1], generator=draw).to(dtype)
    size = 64 if shape[-1] % 64 == 0 else None
    pairs = torch.cat((x, residual), dim=1)

    def run(device: str) -> list[torch.Tensor]:
        a, b, w, p = (tensor.to(device) for tensor in (x, residual, weight, pairs))
        ops = torch.ops.wlib
        return [
            *ops.fp8_quantize(a, sums_group=size),
            *ops.rms_norm_fp8_quantize(a, w, residual=b, sums_group=size),
            *ops.rms_norm_fp8_quantize(a, w.float(), eps=1e-3),
            *ops.silu_mul_fp8_quantize(p, sums_group=size),
            *ops.silu_mul_fp8_quantize(p, interleaved=True),
        ]

    for got, expected in zip(run("cuda"), run("cpu"), strict=True):
        assert torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


def test_fp8_quantize_of_every_bfloat16() -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    x = values[values.isfinite()].view(-1, 1).repeat(1, 2)
    x[:, 1] = 1.0  # the scale comes from the larger of the value and 1
    codes, scale = wlib.fp8_quantize(x.cuda())
    expected_codes, expected_scale = wlib.fp8_quantize(x)
    assert torch.equal(scale.cpu(), expected_scale)
    assert torch.equal(codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8))
