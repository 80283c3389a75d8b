"""FP4 quantisation, requantised transposes and rotations on the GPU: the bits of the CPU.

Where tensor cores rotate (16-bit and packed sources, sizes of 32 and more) they add in another
order, and few bits differ.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib  # noqa: F401  registers the ops

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MX_RULES = ("even", "floor", "three_quarters", "quest", "quest_floor")
NV = {"format": "nvfp4", "scale_rule": "amax"}
CASES: dict[str, dict[str, Any]] = {
    **{rule: {"scale_rule": rule, "mask": True} for rule in MX_RULES},
    "e4m3": {"carrier": "e4m3", "swizzle": True},
    "e5m2 alone": {"carrier": "e5m2", "packed": False, "scale_rule": "three_quarters"},
    "window": {"window": 3},
    "stochastic mxfp4": {"scale_rule": "three_quarters", "rounding": "stochastic"},
    "amax": {**NV, "mask": True, "swizzle": True},
    "four_over_six": {"format": "nvfp4", "scale_rule": "four_over_six"},
    "square": {**NV, "square": True},
    "stochastic nvfp4": {**NV, "rounding": "stochastic"},
    "ms_eden": {**NV, "rounding": "ms_eden"},
}
SHAPES = ((128, 128), (384, 4096), (1152, 640))


def signs(size: int) -> Tensor:
    return (torch.randint(0, 2, (size,)) * 2 - 1).to(torch.int8)


def arguments_of(case: str, size: int) -> dict[str, Any]:
    arguments = dict(CASES[case])
    if arguments.get("rounding", "nearest") != "nearest":
        arguments |= {"seed": torch.tensor([5, 6]), "offset": 3}
    if size:
        arguments |= {"hadamard": size, "signs": signs(size)}
    return arguments


def assert_same(op: Any, *operands: Any, **arguments: Any) -> None:
    """The op gives the same bytes on both devices; NaN for NaN in float32."""

    def cuda(value: Any) -> Any:
        return value.cuda() if isinstance(value, Tensor) else value

    expected = op(*operands, **arguments)
    got = op(*map(cuda, operands), **{name: cuda(value) for name, value in arguments.items()})
    for a, b in zip(got, expected, strict=True):
        if a.dtype == torch.float32:
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)
        else:
            assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8))


def moved(got: Tensor, expected: Tensor) -> float:
    """The share of bytes that differ."""
    differs = got.cpu().view(torch.uint8) != expected.view(torch.uint8)
    return float(differs.double().mean()) if differs.numel() else 0.0


def assert_close(op: Any, *operands: Any, **arguments: Any) -> None:
    """At most one code in 10000 differs, and then by a step; or all of a block, with its scale."""
    expected = op(*operands, **arguments)
    cuda = [value.cuda() if isinstance(value, Tensor) else value for value in operands]
    on_gpu = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    got = op(*cuda, **on_gpu)
    for i in range(0, len(got), 6):
        codes, scales, global_scale, carrier, row_scale, mask = got[i : i + 6]
        torch.testing.assert_close(
            global_scale.cpu(), expected[i + 2], rtol=1e-5, atol=0, equal_nan=True
        )
        assert moved(row_scale, expected[i + 4]) <= 1e-3
        assert moved(scales, expected[i + 1]) <= 1e-3
        for bytes_, reference in ((codes, expected[i]), (carrier, expected[i + 3])):
            assert moved(bytes_, reference) <= 2e-3
        assert moved(mask, expected[i + 5]) <= 2e-3
        if codes.numel() and moved(scales, expected[i + 1]) == 0:
            nibbles = [torch.stack([c & 15, c >> 4]).int() for c in (codes.cpu(), expected[i])]
            assert float((nibbles[0] != nibbles[1]).double().mean()) <= 1e-4
            place = [torch.where(n < 8, n, 8 - n) for n in nibbles]  # -7 .. 7
            assert int((place[0] - place[1]).abs().max()) <= 1


def spread(rows: int, columns: int) -> Tensor:
    """Gaussian blocks of 32 x 32 whose magnitudes span 40 binades."""
    exponents = torch.randint(-40, 1, (rows // 32, columns // 32)).float()
    return torch.randn(rows, columns) * exponents.exp2().repeat_interleave(32, 0).repeat_interleave(
        32, 1
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [0, 16, 32, 64, 128])
def test_both_sides(case: str, size: int) -> None:
    torch.manual_seed(size)
    for i, shape in enumerate(SHAPES):
        x = spread(*shape).to(FLOATS[i])
        check = assert_close if size >= 32 and x.dtype != torch.float32 else assert_same
        check(torch.ops.wlib.fp4_quantize, x, axis="both", **arguments_of(case, size))


@pytest.mark.parametrize("case", CASES)
def test_requantised_transpose(case: str) -> None:
    torch.manual_seed(1)
    plain: dict[str, Any] = {}
    for old in (plain, NV):
        codes, scales, scale = torch.ops.wlib.fp4_quantize(spread(1152, 640), **old)[:3]
        operands = (codes, scales, scale if old else None)
        assert_close(torch.ops.wlib.fp4_requantize_t, *operands, **arguments_of(case, 128))
        # The global scale of what is requantised follows the rotation; the CPU multiplies before.
        check = assert_close if old else assert_same
        check(torch.ops.wlib.fp4_requantize_t, *operands, **arguments_of(case, 16))


@pytest.mark.parametrize("columns", [1, 35, 257])
def test_any_rows_and_columns(columns: int) -> None:
    torch.manual_seed(2)
    for dtype in FLOATS:
        x = torch.randn(96, columns).to(dtype)
        assert_same(torch.ops.wlib.fp4_quantize, x, axis="columns", carrier="e4m3")
        wide = torch.randn(columns, 200).to(dtype)[:, 3:131]
        check = assert_same if dtype == torch.float32 else assert_close
        check(torch.ops.wlib.fp4_quantize, wide, hadamard=64)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e-42, 1e38])
@pytest.mark.parametrize("case", CASES)
def test_special_values(case: str, value: float) -> None:
    torch.manual_seed(3)
    x = torch.randn(64, 256)
    x[5, 33:70] = value
    assert_same(torch.ops.wlib.fp4_quantize, x, **arguments_of(case, 0))


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard(size: int, inverse: bool) -> None:
    torch.manual_seed(4)
    for dtype in FLOATS:
        x, s = torch.randn(3, 77, 384).to(dtype), signs(size)
        expected = torch.ops.wlib.hadamard(x, size, s, inverse=inverse)
        got = torch.ops.wlib.hadamard(x.cuda(), size, s.cuda(), inverse=inverse)
        assert torch.equal(got.cpu(), expected)


def test_signs() -> None:
    for seed in (torch.tensor(9), torch.tensor([2**50, 7])):
        for size in (16, 128):
            got = torch.ops.wlib.fp4_signs(seed.cuda(), size, offset=5)
            assert torch.equal(got.cpu(), torch.ops.wlib.fp4_signs(seed, size, offset=5))


def test_empty_matrices() -> None:
    for shape in ((0, 64), (64, 0)):
        assert_same(torch.ops.wlib.fp4_quantize, torch.zeros(shape), carrier="e4m3")
        assert_same(torch.ops.wlib.fp4_quantize, torch.zeros(shape), **NV)


def test_in_a_graph() -> None:
    """The seed is read when the graph runs."""
    x, state = torch.randn(128, 256).cuda(), torch.tensor([1, 0]).cuda()
    arguments = {**NV, "rounding": "ms_eden", "hadamard": 64}
    torch.ops.wlib.fp4_quantize(x, seed=state, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.wlib.fp4_quantize(x, seed=state, **arguments)
    for step in range(3):
        state.copy_(torch.tensor([1, step]))
        graph.replay()
        expected = torch.ops.wlib.fp4_quantize(x.cpu(), seed=torch.tensor([1, step]), **arguments)
        assert torch.equal(out[0].cpu(), expected[0])
        assert torch.equal(out[1].cpu().view(torch.uint8), expected[1].view(torch.uint8))
