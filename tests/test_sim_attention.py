"""The attention kernel in the simulator: values, exactness, determinism, and no finding."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wlib
from attention_problems import attention, call
from prefill_problems import check_result, dequantized_queries, exact
from sim_problems import probe
from test_prefill import FP8, Sequences, make
from wlib import kv_layout
from wlib.reference import prefill as reference

TIMINGS = ("eager", "random", "lazy")


def draw(seed: int) -> dict[str, Any]:
    """How the simulator runs a case."""
    rng = np.random.default_rng(seed)
    return {
        "seed": seed,
        "timing": TIMINGS[seed % 3],
        "schedule": str(rng.choice(["random", "round_robin"])),
        "preempt_every": int(rng.choice([0, 500])),
    }


def check(s: Sequences, seed: int = 0, **options: Any) -> None:
    out, lse, findings = attention(s, simulation=draw(seed), **options)
    assert findings == []
    check_result(s, out, lse, **options)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (16, 1), (3, 1)])
def test_causal(dim: int, heads: int, kv_heads: int) -> None:
    check(make([65, 1, 7], [65, 64, 200], heads=heads, kv_heads=kv_heads, dim=dim), dim + heads)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_odd_lengths_and_empty_sequences(length: int, causal: bool) -> None:
    check(make([3, 0, length, 5], [length, 7, 0, 130]), length, causal=causal, ctas=3)


@pytest.mark.parametrize("window", [(0, 0), (63, 0), (64, 5), (-1, 3), (1000, 1000)])
@pytest.mark.parametrize("causal", [True, False])
def test_windows(window: tuple[int, int], causal: bool) -> None:
    check(make([70, 9], [350, 64]), window[1], causal=causal, window_size=window)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("cached", [0, 64, 100])
def test_new_keys_behind_the_cache(cached: int, dim: int) -> None:
    s = make([70, 3], [cached, 65], new=True, smooth=True, dim=dim)
    check(s, cached)
    check(s, cached + 1, window_size=(20, 0))


def test_blocks_outside_the_window_are_not_fetched() -> None:
    """Pages that do not exist, where no row looks, would be reads out of bounds."""
    s = make([70], [640], dim=64)
    table = s.arguments["page_table"].clone()
    first = (640 - 70 - 100) // 64  # that the first query sees
    table[0, :first] = 1 << 20
    check(s, page_table=table, window_size=(100, 0))
    table[0, first] = 1 << 20
    _, _, findings = attention(s, page_table=table, window_size=(100, 0))
    assert [f.check for f in findings] == ["global-bounds"]


def test_causal_items_are_taken_longest_first() -> None:
    """Also where one sequence is shorter than another one, but has more keys."""
    s = make([300, 40, 0, 130], [0, 500, 100, 64], heads=4, kv_heads=2, dim=64)
    items = [item for item in call(s).items() if item[2] > 0]
    first_of = {}
    for sequence, queries in enumerate([300, 40, 0, 130]):
        own = [item for item in items if item[0] == sequence]
        assert sum(rows for _, _, rows, _ in own) == queries * 4
        steps = [steps for *_, steps in own]
        assert steps == sorted(steps, reverse=True)
        first_of[sequence] = max(steps, default=0)
    # One item per sequence and KV head comes before all others: that with the last queries.
    assert [steps for *_, steps in items[:6]] == [first_of[i] for i in (0, 0, 1, 1, 3, 3)]


def test_smoothing_softcap_and_scale() -> None:
    s = make([33], [130], smooth=True)
    check(s, softcap=5.0)
    check(s, softmax_scale=0.3)
    check(make([40], [10]))  # 30 queries see nothing


@pytest.mark.parametrize("splits", [1, 3])
def test_sinks(splits: int) -> None:
    s = make([33, 20], [330, 0], smooth=True)
    for level in (-20.0, 0.0, 30.0):
        check(s, splits, sinks=torch.linspace(level - 1, level + 1, 4), splits=splits)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("splits", [2, 5, 32])
def test_split_keys(dim: int, splits: int) -> None:
    check(make([3, 20], [700, 130], dim=dim, new=True), splits, splits=splits, ctas=3)


def test_output_dtypes_round_once() -> None:
    s = make([20], [100])
    whole = attention(s).out
    for dtype in (torch.bfloat16, torch.float16):
        out, _, findings = attention(s, out_dtype=dtype)
        assert findings == []
        assert torch.equal(out, whole.to(dtype))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_equal_scores_give_the_exact_mean(dim: int) -> None:
    """With q = 0 every probability is one: the output is a sum of integers over a power of two."""
    s = make([64], [192], dim=dim, new=True)
    s.q8.view(torch.uint8).zero_()
    s.kv.v_scale.fill_(0.5)
    s.arguments["v_new"] = torch.randint(-8, 9, (64, 2, dim)).float().to(FP8)
    s.arguments["v_new_scale"] = torch.full((64, 2), 0.25)
    _, cached = s.kv.dequantize()
    table = s.arguments["page_table"][0, :3]
    slots = (table[:, None] * 64 + torch.arange(64)).flatten()
    values = torch.cat((cached[slots], s.arguments["v_new"].float() * 0.25)).double()
    for seed in range(6):
        out, lse, findings = attention(s, causal=False, simulation=draw(seed), splits=1 + seed % 2)
        assert findings == []
        if seed % 2 == 0:  # parts are weighted with rounded exponentials
            expected = values.mean(0).repeat_interleave(2, 0).expand(64, -1, -1)
            assert torch.equal(out.double(), expected)
        torch.testing.assert_close(lse, torch.full_like(lse, math.log(256)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_int4_path_equals_fp8_path_bit_for_bit(dim: int) -> None:
    """The codes of the cache given as new FP8 keys and values, with their scales."""
    tokens = 200
    s = make([tokens], [tokens], dim=dim, seed=dim)
    table = s.arguments["page_table"][0, :4]
    slots = (table[:, None] * 64 + torch.arange(64)).flatten()[:tokens]
    codes = {
        "k": kv_layout.unpack(s.kv.k, 64).transpose(1, 2).flatten(0, 1)[slots],
        "v": kv_layout.unpack(s.kv.v, dim)
        .transpose(2, 3)[:, :, kv_layout.value_slots(s.kv.v.device)]
        .transpose(1, 2)
        .flatten(0, 1)[slots],
    }
    scales = {"k": s.kv.k_scale, "v": s.kv.v_scale}
    new: dict[str, Any] = {"seqused_k": torch.zeros(1, dtype=torch.int32)}
    for name in ("k", "v"):
        new[f"{name}_new"] = (codes[name].float() / 512).to(FP8)  # units of 2^-9
        scale = scales[name].transpose(1, 2).flatten(0, 1)[slots]
        new[f"{name}_new_scale"] = (scale * 512).contiguous()
    for seed, options in enumerate(({}, {"causal": False}, {"window_size": (70, 10)})):
        a = attention(s, simulation=draw(seed), **options)
        b = attention(s, simulation=draw(seed + 7), **options, **new)
        assert a.findings == b.findings == []
        assert torch.equal(a.out, b.out)
        assert torch.equal(a.lse, b.lse)


@pytest.mark.parametrize("splits", [1, 3])
def test_result_does_not_depend_on_the_schedule(splits: int) -> None:
    s = make([65, 1, 7], [365, 64, 200], new=True, dim=128)
    first = attention(s, splits=splits, ctas=1)
    for seed in range(8):
        again = attention(s, splits=splits, ctas=1 + seed % 4, simulation=draw(seed))
        assert again.findings == []
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)


def test_row_does_not_depend_on_its_batch() -> None:
    s = make([5, 40], [100, 80])
    out, lse, _ = attention(s)
    alone = {
        "q_scale": s.q_scale[5:].contiguous(),
        "cu_seqlens_q": torch.tensor([0, 40], dtype=torch.int32),
        "seqused_k": s.arguments["seqused_k"][1:],
        "page_table": s.arguments["page_table"][1:],
    }
    one, one_lse, findings = attention(s._replace(q8=s.q8[5:].contiguous()), **alone)
    assert findings == []
    assert torch.equal(one, out[5:])
    assert torch.equal(one_lse, lse[:, 5:])


def test_nan_reaches_its_rows_only() -> None:
    s = make([8, 8], [70, 70])
    s.q_scale[3, 1] = math.nan
    out, lse, findings = attention(s)
    assert findings == []
    bad = torch.zeros_like(out, dtype=torch.bool)
    bad[3, 1] = True
    assert torch.equal(out.isnan(), bad)
    assert lse.isnan().sum() == 1


def emulate(s: Sequences, values: Tensor, scale: Tensor, **options: Any) -> Tensor:
    """The first sequence."""
    count = int(s.arguments["cu_seqlens_q"][1])
    return reference.tiled_attention(
        dequantized_queries(s)[:count],
        s.keys[0],
        values,
        scale,
        cached=len(s.keys[0]),
        softmax_scale=s.q8.shape[2] ** -0.5,
        **options,
    )


def cached_values(s: Sequences, tokens: int) -> tuple[Tensor, Tensor]:
    blocks = s.arguments["page_table"][0, : -(-tokens // 64)]
    slots = (blocks[:, None] * 64 + torch.arange(64)).flatten()[:tokens]
    scale = s.kv.v_scale.transpose(1, 2).flatten(0, 1)[slots]
    return s.values[0] / scale[..., None].double(), scale


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_agrees_with_its_emulator(dim: int) -> None:
    s = make([70], [300], dim=dim)
    out, _, findings = attention(s)
    assert findings == []
    error = out - emulate(s, *cached_values(s, 300))
    assert error.norm() <= 0.005 * out.norm()


def test_truncating_accumulators_do_not_add_up() -> None:
    """Values with a mean over many keys: the output's own accumulation is in FP32."""
    torch.manual_seed(0)
    s = make([2], [4096], heads=1, kv_heads=1)
    k, v = torch.randn(4096, 1, 64) * 0.1, torch.randn(4096, 1, 64) + 0.5
    starts = torch.tensor([0, 4096], dtype=torch.int32)
    kv, table = wlib.quantize_kv_int4(k, v, starts)
    keys, values = (t[:4096].double() for t in kv.dequantize())
    s = s._replace(kv=kv, keys=[keys], values=[values])
    s.arguments["page_table"] = table
    want = exact(s).out
    plain = attention(s).out
    cut, _, findings = attention(s, simulation={"truncate": True})
    assert findings == []
    assert (cut - want).norm() <= 0.005 * want.norm()
    assert (cut - plain).norm() <= 0.002 * want.norm()
    assert (plain - want).norm() <= 0.005 * want.norm()
    one_level = emulate(s, *cached_values(s, 4096), promote=False, fraction_bits=13)
    assert (one_level - want).norm() >= 2 * (cut - want).norm()


def test_two_levels_hold_for_64k_keys() -> None:
    """What truncating accumulators add to the error, by the emulator."""
    rng = torch.Generator().manual_seed(0)
    tokens, dim = 65536, 64
    q = torch.randn(2, 1, dim, generator=rng)
    k = torch.randn(tokens, 1, dim, generator=rng)
    codes = (7 / 3 * (torch.randn(tokens, 1, dim, generator=rng) + 0.5)).round().clamp(-7, 7)
    scale = 0.5 + torch.rand(tokens, 1, generator=rng)

    def run(**options: Any) -> Tensor:
        problem = {"cached": tokens, "softmax_scale": dim**-0.5, "causal": False}
        return reference.tiled_attention(q, k, codes, scale, **problem, **options)

    plain, cut = run(), run(fraction_bits=13)
    one_level = run(promote=False, fraction_bits=13)
    assert 0 < (cut - plain).norm() <= 0.002 * plain.norm()
    assert (one_level - plain).norm() >= 0.01 * plain.norm()


def test_splits_fill_the_gpu_and_no_more() -> None:
    assert probe.choose_splits(tiles=132, steps=1000, sms=132) == 1
    assert probe.choose_splits(tiles=1, steps=3, sms=132) == 1
    assert probe.choose_splits(tiles=1, steps=1000, sms=132) == 32
    assert probe.choose_splits(tiles=64, steps=1000, sms=132) > 1
    for tiles, steps in itertools.product((1, 7, 64, 131, 133, 500), (1, 8, 100, 1024)):
        splits = probe.choose_splits(tiles=tiles, steps=steps, sms=132)
        assert 1 <= splits <= 32
        assert splits == 1 or steps >= 4 * splits
