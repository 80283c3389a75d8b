"""Attention over an INT4 cache against float64 softmax attention on the dequantised tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import wlib
from wlib import kv_layout
from wlib.reference import prefill as reference

FP8 = torch.float8_e4m3fn
EPS = 2.0**-24  # largest relative error of one float32 rounding


class Sequences(NamedTuple):
    """Sequences of `queries` new tokens behind `cached` ones, pages in random order."""

    q8: Tensor
    q_scale: Tensor
    kv: wlib.Int4KVCache
    arguments: dict[str, Any]  # of attention_prefill
    keys: list[Tensor]  # of each sequence, dequantised, float64
    values: list[Tensor]


class Bounds(NamedTuple):
    """How far float32 results may be from exact ones: out [Tq, H, D], lse [H, Tq]."""

    out: Tensor
    lse: Tensor


def make(
    queries: list[int],
    cached: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    new: bool = False,
    smooth: bool = False,
    seed: int = 0,
) -> Sequences:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    starts = torch.tensor([0, *queries]).cumsum(0).int()
    offsets = [0, *torch.tensor(cached).cumsum(0).tolist()]
    blocks = [-(-n // 64) for n in cached]
    pages = torch.randperm(sum(blocks) + 2, generator=rng)
    table = torch.zeros(len(queries), max([1, *blocks]), dtype=torch.int32)
    slots = []
    for i, count in enumerate(blocks):
        own, pages = pages[:count], pages[count:]
        table[i, :count] = own
        position = torch.arange(cached[i])
        slots.append(own[position // 64] * 64 + position % 64)
    kv = wlib.Int4KVCache.allocate(sum(blocks) + 2, kv_heads, dim)
    for tensor in (kv.k_scale, kv.v_scale):
        tensor.fill_(math.nan)  # a slot nobody wrote must not be used
    k_mean = normal(kv_heads, dim) if smooth else None
    k_smooth = normal(kv_heads, dim).exp() if smooth else None
    kv.k_mean, kv.k_smooth = k_mean, k_smooth
    k, v = normal(offsets[-1], kv_heads, dim), normal(offsets[-1], kv_heads, dim)
    kv.append(k, v, torch.cat([torch.empty(0, dtype=torch.int64), *slots]))
    q8, q_scale = wlib.quantize_q_fp8(normal(sum(queries), heads, dim), k_smooth)
    arguments: dict[str, Any] = {
        "q_scale": q_scale,
        "cu_seqlens_q": starts,
        "max_seqlen_q": max([0, *queries]),
        "seqused_k": torch.tensor(cached, dtype=torch.int32),
        "page_table": table,
        "out_dtype": torch.float32,
    }
    all_k, all_v = kv.dequantize()
    keys = [all_k[s].double() for s in slots]
    values = [all_v[s].double() for s in slots]
    if new:
        fresh = {}
        for name in ("k", "v"):
            codes, scale = wlib.fp8_quantize(normal(sum(queries), kv_heads, dim))
            fresh |= {f"{name}_new": codes, f"{name}_new_scale": scale}
        arguments |= fresh
        for i in range(len(queries)):
            part = slice(int(starts[i]), int(starts[i + 1]))
            k_new = fresh["k_new"][part].double() * fresh["k_new_scale"][part].double()[..., None]
            v_new = fresh["v_new"][part].double() * fresh["v_new_scale"][part].double()[..., None]
            if k_smooth is not None and k_mean is not None:
                k_new = k_new / k_smooth + k_mean
            keys[i], values[i] = torch.cat((keys[i], k_new)), torch.cat((values[i], v_new))
    return Sequences(q8, q_scale, kv, arguments, keys, values)


def float32_bounds(exact: reference.Attention, dim: int, keys: int, extra: Tensor) -> Bounds:
    """What float32 arithmetic in any order can make.

    A score is off by (D + 8) roundings of its products' magnitude and exp by 4 of its own; relative
    to their sum, probabilities by twice as much. Values add keys + 8 roundings. With smoothing,
    whose terms `extra` [queries, heads] holds, cached keys went through (k - mean) * smooth in
    float32 and back: eight more.
    """
    roundings = dim + 8 + (8 if extra.any() else 0)
    off = roundings * EPS * (exact.score + extra) + 8 * EPS
    out = exact.magnitude * (2 * off[..., None] + (keys + 8) * EPS) + 1e-30
    return Bounds(out, off.T + (keys + 8) * EPS + EPS * exact.lse.abs())


def check(s: Sequences, **options: Any) -> None:
    """Every output within what float32 arithmetic in any order can make."""
    out, lse = wlib.attention_prefill(s.q8, s.kv, **s.arguments | options)
    dim = s.q8.shape[2]
    q = s.q8.double() * s.q_scale.double()[..., None]
    if s.kv.k_smooth is not None:
        q = q * s.kv.k_smooth.double().repeat_interleave(q.shape[1] // s.kv.num_kv_heads, 0)
    names = ("causal", "window_size", "softcap", "sinks")
    passed = {name: options[name] for name in names if name in options}
    starts = s.arguments["cu_seqlens_q"].tolist()
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        scale = options.get("softmax_scale") or dim**-0.5
        exact = reference.attention(
            q[start:end], s.keys[i], s.values[i], softmax_scale=scale, **passed
        )
        extra = extra_score(s.kv, q[start:end], scale)
        bounds = float32_bounds(exact, dim, len(s.keys[i]), extra)
        error = (out[start:end].double() - exact.out).abs()
        assert (error <= bounds.out).all(), (error / bounds.out).max()
        finite = exact.lse > -math.inf
        lse_part = lse[:, start:end].double()
        assert (lse_part[~finite] == -math.inf).all()
        assert ((lse_part - exact.lse).abs() <= bounds.lse)[finite].all()


def extra_score(kv: wlib.Int4KVCache, q: Tensor, scale: float) -> Tensor:
    """What taking off the mean adds to the magnitude of a score, [queries, heads]."""
    if kv.k_mean is None:
        return torch.zeros(q.shape[:2], dtype=torch.float64)
    group = q.shape[1] // kv.num_kv_heads
    mean = kv.k_mean.double().abs().repeat_interleave(group, 0)
    return 2 * scale * (q.abs() * mean).sum(2)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (16, 1), (3, 3)])
def test_causal(dim: int, heads: int, kv_heads: int) -> None:
    check(make([65, 1, 7], [65, 64, 200], heads=heads, kv_heads=kv_heads, dim=dim))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_odd_lengths_and_empty_sequences(length: int, causal: bool) -> None:
    check(make([3, 0, length, 5], [length, 7, 0, 130]), causal=causal)


@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (63, 0), (64, 5), (-1, 3), (1000, 1000)])
@pytest.mark.parametrize("causal", [True, False])
def test_windows(window: tuple[int, int], causal: bool) -> None:
    check(make([70, 9], [150, 64]), causal=causal, window_size=window)


def test_more_queries_than_keys() -> None:
    s = make([40], [10])
    check(s)
    out, lse = wlib.attention_prefill(s.q8, s.kv, **s.arguments)
    assert (out[:30] == 0).all()
    assert (lse[:, :30] == -math.inf).all()


@pytest.mark.parametrize("cached", [0, 64, 100])
@pytest.mark.parametrize("smooth", [False, True])
def test_new_keys_behind_the_cache(cached: int, smooth: bool) -> None:
    check(make([70, 3], [cached, 65], new=True, smooth=smooth))
    check(make([70, 3], [cached, 65], new=True, smooth=smooth), window_size=(20, 0))


def test_smoothing_and_softcap() -> None:
    s = make([33], [130], smooth=True)
    check(s)
    check(s, softcap=5.0)
    check(s, softmax_scale=0.3)


def test_sinks() -> None:
    s = make([33, 20], [130, 0], smooth=True)
    for level in (-20.0, 0.0, 30.0):
        check(s, sinks=torch.linspace(level - 1, level + 1, 4))


def test_output_dtypes_round_once() -> None:
    s = make([20], [100])
    exact = wlib.attention_prefill(s.q8, s.kv, **s.arguments, return_lse=False)
    for dtype in (torch.bfloat16, torch.float16):
        out, _ = wlib.attention_prefill(s.q8, s.kv, **s.arguments | {"out_dtype": dtype})
        assert torch.equal(out, exact.to(dtype))


def test_parts_merge_to_the_whole() -> None:
    s = make([16], [192])
    whole, whole_lse = wlib.attention_prefill(s.q8, s.kv, **s.arguments, causal=False)
    parts = []
    for first, count in ((0, 1), (1, 2)):
        table = s.arguments["page_table"][:, first : first + count].contiguous()
        used = torch.tensor([64 * count], dtype=torch.int32)
        options = s.arguments | {"page_table": table, "seqused_k": used}
        parts.append(wlib.attention_prefill(s.q8, s.kv, **options, causal=False))
    out, lse = wlib.merge_attention_states(*parts[0], *parts[1])
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-6, atol=1e-6)
    nothing = torch.zeros_like(whole), torch.full_like(whole_lse, -math.inf)
    out, lse = wlib.merge_attention_states(*nothing, whole, whole_lse)
    assert torch.equal(out, whole)
    assert torch.equal(lse, whole_lse)
    out, lse = wlib.merge_attention_states(*nothing, *nothing)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_row_does_not_depend_on_its_batch() -> None:
    s = make([5, 40], [100, 80])
    out, lse = wlib.attention_prefill(s.q8, s.kv, **s.arguments)
    alone = s.arguments | {
        "q_scale": s.q_scale[5:].contiguous(),
        "cu_seqlens_q": torch.tensor([0, 40], dtype=torch.int32),
        "seqused_k": s.arguments["seqused_k"][1:],
        "page_table": s.arguments["page_table"][1:],
    }
    one, one_lse = wlib.attention_prefill(s.q8[5:].contiguous(), s.kv, **alone)
    assert torch.equal(one, out[5:])
    assert torch.equal(one_lse, lse[:, 5:])


def test_nan_reaches_its_rows_only() -> None:
    s = make([8, 8], [70, 70])
    s.q_scale[3, 1] = math.nan
    out, lse = wlib.attention_prefill(s.q8, s.kv, **s.arguments)
    bad = torch.zeros_like(out, dtype=torch.bool)
    bad[3, 1] = True
    assert torch.equal(out.isnan(), bad)
    assert lse.isnan().sum() == 1


def test_layout() -> None:
    codes = torch.randint(-7, 8, (3, 64, 128), dtype=torch.int8)
    data = kv_layout.pack(codes)
    assert data.shape == (3, 64 * 64)
    assert torch.equal(kv_layout.unpack(data, 64), codes)
    words = data.view(3, 4, 64, 4, 4)  # [.., columns / 32, row, word, byte]
    first = words & 0x87
    rotated = (words >> 4) | (words.roll(-1, -1) << 4)
    both = torch.stack((first, rotated & 0x87), dim=-3).view(torch.float8_e4m3fn).float() * 512
    assert torch.equal(both.transpose(1, 2).reshape(3, 64, 128), codes.float())


def test_appended_tokens_keep_their_neighbours() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 130, 2, 64)
    kv, table = wlib.quantize_kv_int4(k, v, torch.tensor([0, 130], dtype=torch.int32))
    assert table.tolist() == [[0, 1, 2]]
    one = wlib.Int4KVCache.allocate(3, 2, 64)
    for i in torch.randperm(130).tolist():
        one.append(k[i : i + 1], v[i : i + 1], torch.tensor([i]))
    for a, b in zip(
        (kv.k, kv.v, kv.k_scale, kv.v_scale), (one.k, one.v, one.k_scale, one.v_scale), strict=True
    ):
        assert torch.equal(a, b)
    before = one.k.clone(), one.v.clone()
    one.append(k[:1], v[:1], torch.tensor([-1]))
    assert torch.equal(before[0], one.k)
    assert torch.equal(before[1], one.v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cache_against_its_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    k, v = torch.randn(2, 100, 3, 128).to(dtype)
    k[5] = 0
    mean, smooth = torch.randn(3, 128), torch.rand(3, 128) + 0.5
    starts = torch.tensor([0, 100], dtype=torch.int32)
    kv, _ = wlib.quantize_kv_int4(k, v, starts, mean, smooth)
    got_k, got_v = kv.dequantize()
    for got, x in ((got_k, (k.float() - mean) * smooth), (got_v, v.float())):
        scale = x.abs().amax(-1, keepdim=True) / 7
        code = torch.where(scale > 0, (x / scale).round().clamp(-7, 7), 0.0)
        expected = code * scale
        if got is got_k:
            expected = expected / smooth + mean
        assert torch.equal(got[:100], expected)
    assert kv.bytes_per_token == 3 * (128 + 8)


def test_llama_8b_cache_size() -> None:
    kv = wlib.Int4KVCache.allocate(1, 8, 128)
    assert 32 * kv.bytes_per_token <= 34 * 1024
    assert sum(t.nbytes for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)) == 64 * kv.bytes_per_token


def test_queries_against_their_definition() -> None:
    torch.manual_seed(2)
    q = torch.randn(10, 4, 128, dtype=torch.bfloat16)
    angle = torch.rand(10, 64) * 6
    cos, sin = angle.cos(), angle.sin()
    smooth = torch.rand(2, 128) + 0.5
    q8, scale = wlib.quantize_q_fp8(q, smooth, cos, sin)
    x = q.double()
    turned = torch.cat((-x[..., 64:], x[..., :64]), -1)
    parts = x * cos.repeat(1, 2)[:, None], turned * sin.repeat(1, 2)[:, None]
    factors = smooth.double().repeat_interleave(2, 0)
    x = (parts[0] + parts[1]) / factors
    # A product, an FMA, two divisions: a rounding each, of at most the parts' magnitude.
    largest = ((parts[0].abs() + parts[1].abs()) / factors).amax(-1)
    assert ((scale - x.abs().amax(-1) / 448).abs() <= 4 * EPS * largest / 448).all()
    error = (q8.float() * scale[..., None] - x).abs()
    assert (error <= x.abs() * 2.0**-4 * 1.001 + scale[..., None] * 2.0**-10).all()
    plain, plain_scale = wlib.quantize_q_fp8(q)
    codes, expected = wlib.fp8_quantize(q)
    assert torch.equal(plain.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(plain_scale, expected)


def test_smoothing_cuts_the_format_error_of_outlier_channels() -> None:
    """Eight offset channels per head, as real keys have them: the issue's case."""
    torch.manual_seed(3)
    tokens, dim = 512, 128
    k = torch.randn(tokens, 1, dim)
    k[:, :, :8] += 20 * torch.randn(1, 1, 8).sign()
    v = torch.randn(tokens, 1, dim)
    starts = torch.tensor([0, tokens], dtype=torch.int32)
    q = torch.randn(64, 1, dim)

    def logit_error(**smoothing: Tensor) -> float:
        kv, _ = wlib.quantize_kv_int4(k, v, starts, **smoothing)
        got = kv.dequantize()[0][:tokens]
        exact = torch.einsum("qhd,khd->qk", q, k - k.mean(0))
        error = torch.einsum("qhd,khd->qk", q, got - k)
        return float(error.norm() / exact.norm())

    plain, smoothed = logit_error(), logit_error(k_mean=k.mean(0))
    assert smoothed * 3 <= plain, (plain, smoothed)
