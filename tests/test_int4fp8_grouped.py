"""The grouped GEMM of a mixture of experts and its module, against float64 and plain torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wlib
from wlib.nn import Int4Fp8Experts
from wlib.reference import exact
from wlib.reference import int4fp8 as reference

FP8 = torch.float8_e4m3fn
COUNTS = ((0, 1, 63, 64, 65, 0), (0, 0, 33, 0), (7,), (1, 2, 3, 15, 16, 17), (0, 0))


def offsets_of(counts: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(dtype)


def random_experts(
    count: int, n: int, k: int, group_size: int, zero_point: bool = False
) -> list[wlib.Int4Weight]:
    groups = k // group_size
    return [
        wlib.Int4Weight(
            codes=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
            group_scale=(torch.randn(n, groups) / 50).bfloat16(),
            zero_point=torch.randn(n, groups) * 4 if zero_point else None,
            channel_scale=torch.rand(n) + 0.5,
        )
        for _ in range(count)
    ]


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("k", "group_size", "zero_point"), [(256, 128, False), (160, 32, True)])
def test_stays_within_the_bound(
    counts: tuple[int, ...], dtype: torch.dtype, k: int, group_size: int, zero_point: bool
) -> None:
    weights = random_experts(len(counts), 70, k, group_size, zero_point)
    xq, xs = wlib.fp8_quantize(torch.randn(sum(counts), k))
    bias = torch.randn(len(counts), 70)
    p, offsets = wlib.pack_experts(weights), offsets_of(counts, dtype)
    y = wlib.int4fp8_gemm_grouped(xq, p, xs, offsets, bias, torch.float32)
    expected = reference.int4fp8_gemm_grouped(xq, weights, xs, counts, bias)
    assert torch.all((y - expected.y).abs() <= expected.bound(k, torch.float32))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_exact_problems_match_bit_for_bit(
    counts: tuple[int, ...], zero_point: bool, out_dtype: torch.dtype
) -> None:
    problems = [exact.problem(m, 65, 256, 64, zero_point=zero_point) for m in counts]
    xq, xs = (torch.cat([p[i] for p in problems]) for i in (0, 1))
    weights, bias = [p.weight for p in problems], torch.stack([p.bias for p in problems])
    p = wlib.pack_experts(weights)
    y = wlib.int4fp8_gemm_grouped(xq, p, xs, offsets_of(counts), bias, out_dtype)
    expected = reference.int4fp8_gemm_grouped(xq, weights, xs, counts, bias)
    assert_same_bits(y, expected.y.to(out_dtype))


OPTIONS: list[dict[str, Any]] = [
    {"activation": "silu_mul", "out_dtype": torch.float32},
    {"activation": "silu_mul", "residual": torch.ones(30, 35), "out_dtype": torch.float16},
    {"residual": torch.ones(30, 70).half(), "out_dtype": torch.bfloat16},
    {"out_scale": torch.tensor(0.25), "out_dtype": FP8},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_an_expert_computes_what_the_plain_op_computes(options: dict[str, Any]) -> None:
    """Epilogues included, also into a tensor that is the residual."""
    counts = (0, 3, 20, 7)
    weights, bias = random_experts(4, 70, 128, 64), torch.randn(4, 70)
    xq, xs = wlib.fp8_quantize(torch.randn(30, 128))
    p, offsets = wlib.pack_experts(weights), offsets_of(counts)
    y = wlib.int4fp8_gemm_grouped(xq, p, xs, offsets, bias, **options)
    parts = []
    for expert, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
        rows = slice(first, last)
        own = {k: v[rows] if k == "residual" else v for k, v in options.items()}
        one = (xq[rows], weights[expert].pack(), xs[rows], bias[expert])
        parts.append(wlib.int4fp8_gemm(*one, **own))
    assert_same_bits(y, torch.cat(parts))
    residual = options.get("residual")
    if residual is not None:
        out = residual.to(options["out_dtype"])
        rest = {k: v for k, v in options.items() if k not in ("out_dtype", "residual")}
        result = wlib.int4fp8_gemm_grouped(xq, p, xs, offsets, bias, out=out, residual=out, **rest)
        assert result is out
        assert_same_bits(out, y)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(1, 130))
def test_any_routing(counts: list[int], n: int) -> None:
    weights = random_experts(len(counts), n, 96, 32, zero_point=True)
    xq, xs = wlib.fp8_quantize(torch.randn(sum(counts), 96))
    p = wlib.pack_experts(weights)
    y = wlib.int4fp8_gemm_grouped(xq, p, xs, offsets_of(counts), out_dtype=torch.float32)
    expected = reference.int4fp8_gemm_grouped(xq, weights, xs, counts)
    assert torch.all((y - expected.y).abs() <= expected.bound(96, torch.float32))


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    """Few tokens: the bits do not depend on how many the expert has, either."""
    weights = random_experts(3, 70, 256, 128)
    xq, xs = wlib.fp8_quantize(torch.randn(12, 256))
    p = wlib.pack_experts(weights)
    rows = {
        bytes(wlib.int4fp8_gemm_grouped(xq, p, xs, torch.tensor(offsets))[-1].view(torch.uint8))
        for offsets in ([0, 4, 8, 12], [0, 0, 11, 12], [0, 0, 0, 12])
    }
    assert len(rows) == 1


def test_nan_reaches_its_expert_or_row_alone() -> None:
    weights = random_experts(3, 40, 128, 128)
    bad = weights[1].group_scale.clone()
    bad[5] = torch.nan
    weights[1] = dataclasses.replace(weights[1], group_scale=bad)
    x = torch.randn(9, 128)
    x[7, 3] = torch.nan
    xq, xs = wlib.fp8_quantize(x)
    y = wlib.int4fp8_gemm_grouped(xq, wlib.pack_experts(weights), xs, offsets_of((3, 3, 3)))
    expected = torch.zeros(9, 40, dtype=torch.bool)
    expected[3:6, 5] = expected[7] = True
    assert torch.equal(y.isnan(), expected)


def test_rows_of_x_may_lie_apart() -> None:
    weights = random_experts(2, 40, 128, 128)
    xq, xs = wlib.fp8_quantize(torch.randn(9, 128))
    wide = torch.cat((xq, xq), dim=1)[:, :128]
    p, offsets = wlib.pack_experts(weights), offsets_of((4, 5))
    y = wlib.int4fp8_gemm_grouped(wide, p, xs, offsets)
    assert_same_bits(y, wlib.int4fp8_gemm_grouped(xq, p, xs, offsets))


def test_experts_unpack_to_what_was_packed() -> None:
    """Some with zero points or channel scales, some without: these count as zeros and ones."""
    first, second = random_experts(2, 70, 160, 32, zero_point=True)
    first = dataclasses.replace(first, zero_point=None)
    second = dataclasses.replace(second, channel_scale=None)
    p = wlib.pack_experts([first, second])
    assert p.experts == 2
    assert p.has_zero_point
    assert p.has_channel_scale
    for expert, weight in enumerate((first, second)):
        assert torch.equal(p[expert].unpack().dequantize(), weight.dequantize())
    moved = p.to("cpu")
    assert torch.equal(moved.data, p.data)
    assert wlib.PackedInt4Experts.zeros(2, 70, 160, 32, has_zero_point=True).data.shape == (
        p.data.shape
    )


def test_quantize_is_that_of_each_weight() -> None:
    w = torch.randn(3, 40, 128)
    p = wlib.PackedInt4Experts.quantize(w, 64, clip_search=True)
    for expert in range(3):
        one = wlib.Int4Weight.quantize(w[expert], 64, clip_search=True)
        assert torch.equal(p[expert].unpack().dequantize(), one.dequantize())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("m", "top_k", "experts"), [(5, 2, 4), (1, 1, 1), (0, 2, 3), (40, 8, 64)])
def test_sort_by_expert(m: int, top_k: int, experts: int, dtype: torch.dtype) -> None:
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(m)]) if m else None
    ids = torch.zeros(0, top_k, dtype=dtype) if ids is None else ids.to(dtype)
    token, row, offsets = wlib.sort_by_expert(ids, experts)
    choices = sorted((int(e), i) for i, own in enumerate(ids.tolist()) for e in own)
    assert token.tolist() == [i for _, i in choices]
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [sum(e < x for e, _ in choices) for x in range(experts + 1)]
    assert torch.equal(token[row], torch.arange(m)[:, None].expand(m, top_k))
    assert sorted(row.flatten().tolist()) == list(range(m * top_k))


def mixture(experts: int = 4, hidden: int = 128, features: int = 96) -> tuple[Tensor, ...]:
    return (
        torch.randn(experts, features, hidden) / hidden**0.5,
        torch.randn(experts, features, hidden) / hidden**0.5,
        torch.randn(experts, hidden, features) / features**0.5,
    )


def route(m: int, top_k: int, experts: int = 4) -> tuple[Tensor, Tensor]:
    weights, ids = torch.rand(m, experts).topk(top_k)
    return ids, weights / weights.sum(dim=1, keepdim=True)


def plain(weights: Sequence[Tensor], x: Tensor, ids: Tensor, shares: Tensor, round_: Any) -> Tensor:
    """Token by token and choice by choice; `round_` is what happens to activations."""
    gate, up, down = weights
    y = torch.zeros_like(x)
    for i, own in enumerate(ids.tolist()):
        for j, e in enumerate(own):
            v = round_(x[i])
            hidden = nn.functional.silu(gate[e] @ v) * (up[e] @ v)
            y[i] += shares[i, j] * (down[e] @ round_(hidden))
    return y


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("m", [0, 1, 5, 60])
def test_module_equals_plain_torch(m: int, top_k: int) -> None:
    """On the quantised weights with quantised activations, up to a rounding of hidden values."""
    module = Int4Fp8Experts.quantize(*mixture(), group_size=32)
    x, (ids, shares) = torch.randn(m, 128), route(m, top_k)
    gate_up = torch.stack([module.gate_up[e].unpack().dequantize() for e in range(4)])
    down = torch.stack([module.down[e].unpack().dequantize() for e in range(4)])

    def quantised(v: Tensor) -> Tensor:
        codes, scale = wlib.fp8_quantize(v)
        return codes.float() * scale

    weights = (gate_up[:, 0::2], gate_up[:, 1::2], down)
    expected = plain(weights, x, ids, shares, quantised)
    y = module(x, ids, shares)
    assert y.shape == x.shape
    # A hidden value that another rounding moves across the border of two E4M3 codes moves by 1/16.
    assert (y - expected).norm() <= 2e-3 * expected.norm()


def test_module_is_close_to_the_float_mixture() -> None:
    weights = mixture(hidden=256, features=192)
    module = Int4Fp8Experts.quantize(*weights, group_size=64, clip_search=True)
    x, (ids, shares) = torch.randn(50, 256), route(50, 2)
    expected = plain(weights, x, ids, shares, lambda v: v)
    assert torch.cosine_similarity(module(x, ids, shares), expected).min() > 0.98


def test_module_takes_leading_dimensions_and_low_precision() -> None:
    module = Int4Fp8Experts.quantize(*mixture(), group_size=32)
    x, (ids, shares) = torch.randn(12, 128).bfloat16(), route(12, 2)
    flat = module(x, ids, shares)
    assert flat.dtype == torch.bfloat16
    many = module(x.view(3, 4, 128), ids.view(3, 4, 2).int(), shares.view(3, 4, 2))
    assert_same_bits(many, flat.view(3, 4, 128))


def test_module_keeps_its_weights_in_a_state_dict() -> None:
    module = Int4Fp8Experts.quantize(*mixture(), group_size=32)
    p = module.gate_up
    zeros = wlib.PackedInt4Experts.zeros
    channel = {"has_channel_scale": p.has_channel_scale}
    other = Int4Fp8Experts(zeros(4, 192, 128, 32, **channel), zeros(4, 128, 96, 32, **channel))
    other.load_state_dict(module.state_dict())
    x, (ids, shares) = torch.randn(5, 128), route(5, 2)
    assert_same_bits(other(x, ids, shares), module(x, ids, shares))
    assert "experts=4, hidden=128, features=96, group_size=32" in repr(module)


def test_compile_without_graph_breaks_for_any_number_of_tokens() -> None:
    module = Int4Fp8Experts.quantize(*mixture(), group_size=32)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for m in (3, 7, 50):
        x, (ids, shares) = torch.randn(m, 128), route(m, 2)
        torch.testing.assert_close(compiled(x, ids, shares), module(x, ids, shares))
