"""The attention kernel with FP16 scores in the simulator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attention_problems import attention
from prefill_problems import check_result, exact
from test_prefill import Sequences, make
from test_sim_attention import check, draw


def half(s: Sequences, seed: int = 0, **options: Any) -> None:
    check(s, seed, allow_fp16_scores=True, **options)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_odd_lengths_and_empty_sequences(length: int) -> None:
    s = make([3, 0, length, 5], [length, 7, 0, 130])
    half(s, length, causal=length % 2 == 0, ctas=3)


@pytest.mark.parametrize("window", [(0, 0), (64, 5)])
def test_windows(window: tuple[int, int]) -> None:
    for causal in (True, False):
        half(make([70, 9], [350, 64]), window[1] + 1, causal=causal, window_size=window)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_split_keys_smoothing_and_sinks(dim: int) -> None:
    s = make([3, 20], [700, 130], dim=dim, smooth=True)
    for splits in (1, 5):
        half(s, splits, splits=splits, ctas=3, sinks=torch.linspace(-3, 20, 4))


def test_queries_that_see_nothing() -> None:
    half(make([40], [10]))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_equal_scores_give_the_exact_mean(dim: int) -> None:
    """With q = 0 every probability is one."""
    s = make([64], [256], dim=dim)
    s.q8.view(torch.uint8).zero_()
    s.kv.v_scale.fill_(0.5)
    _, cached = s.kv.dequantize()
    table = s.arguments["page_table"][0, :4]
    values = cached[(table[:, None] * 64 + torch.arange(64)).flatten()].double()
    expected = values.mean(0).repeat_interleave(2, 0).expand(64, -1, -1)
    for seed in range(3):
        options = {"causal": False, "allow_fp16_scores": True}
        out, lse, findings = attention(s, simulation=draw(seed), **options)
        assert findings == []
        assert torch.equal(out.double(), expected)
        torch.testing.assert_close(lse, torch.full_like(lse, math.log(256)), rtol=1e-6, atol=0)


def test_new_keys_and_softcap_take_fp32() -> None:
    for s, options in (
        (make([33], [130], new=True), {}),
        (make([33], [130]), {"softcap": 5.0}),
    ):
        plain = attention(s, **options)
        allowed = attention(s, allow_fp16_scores=True, **options)
        assert torch.equal(plain.out, allowed.out)
        assert torch.equal(plain.lse, allowed.lse)
    s = make([33], [130])
    assert not torch.equal(attention(s).lse, attention(s, allow_fp16_scores=True).lse)


@pytest.mark.parametrize("dim", [64, 256])
def test_largest_codes_do_not_overflow(dim: int) -> None:
    """|q k| as large as it can be; then scores so large that only the first of them count."""
    s = make([20], [130], dim=dim)
    draw_signs = torch.Generator().manual_seed(dim)
    s.q8.copy_(448.0 * (1 - 2 * torch.randint(2, s.q8.shape, generator=draw_signs)))
    k = s.q8[torch.arange(130) % 20, ::2].float()  # some keys are along some queries
    k[::3] *= -1
    _, values = s.kv.dequantize()
    table = s.arguments["page_table"][0].long()
    slots = table[torch.arange(130) // 64] * 64 + torch.arange(130) % 64
    s.kv.append(k, values[slots], slots)
    s.kv.k_scale[:] = 1.0
    s = s._replace(keys=[s.kv.dequantize()[0][slots].double()], values=[values[slots].double()])
    s.q_scale[:] = 1.0
    half(s, softmax_scale=2.0**-15)
    highest = values[slots].abs().max()
    for scale in (1.0, 2.0**60):
        out, lse, findings = attention(s, allow_fp16_scores=True, softmax_scale=scale)
        assert findings == []
        assert (out.abs() <= 1.07 * highest).all()
        assert lse.isfinite().all()


def test_scales_that_are_powers_of_two_do_not_matter() -> None:
    """Keys' scales are divided by the largest of the step before they become FP16."""
    s = make([33], [200], dim=128)
    first = attention(s, allow_fp16_scores=True, softmax_scale=0.1)
    for exponent in (-60, 60):
        s.kv.k_scale.mul_(2.0**exponent)
        again = attention(s, allow_fp16_scores=True, softmax_scale=0.1 * 2.0**-exponent)
        s.kv.k_scale.mul_(2.0**-exponent)
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)


@pytest.mark.parametrize("fp16", [False, True])
def test_scales_of_every_size_and_sign(fp16: bool) -> None:
    s = make([40], [200], dim=64)
    powers = torch.randint(-30, 1, s.kv.k_scale.shape, generator=torch.Generator().manual_seed(0))
    s.kv.k_scale.mul_(2.0**powers)
    s.q_scale[3] = 0
    s.q_scale[4:8] *= -1
    table = s.arguments["page_table"][0].long()
    slots = table[torch.arange(200) // 64] * 64 + torch.arange(200) % 64
    s = s._replace(keys=[s.kv.dequantize()[0][slots].double()])
    for scale in (0.125, -0.125):
        check(s, softmax_scale=scale, allow_fp16_scores=fp16)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_error_stays_near_that_of_fp32_scores(dim: int) -> None:
    """Also where scores reach 20 and 57."""
    s = make([64], [512], dim=dim, seed=1)
    for largest in (20.0, 57.0):
        scale = largest / (5 * math.sqrt(dim))
        want = exact(s, softmax_scale=scale).out
        errors = []
        for fp16 in (False, True):
            out, lse, findings = attention(s, softmax_scale=scale, allow_fp16_scores=fp16)
            assert findings == []
            check_result(s, out, lse, softmax_scale=scale, allow_fp16_scores=fp16)
            errors.append(float((out - want).norm() / want.norm()))
        assert errors[1] <= 1.2 * errors[0] + 0.002


def test_truncating_accumulators() -> None:
    s = make([32], [300], dim=128)
    half(s, simulation={"truncate": True})


@pytest.mark.parametrize("splits", [1, 3])
def test_result_does_not_depend_on_the_schedule(splits: int) -> None:
    s = make([65, 1, 7], [365, 64, 200], dim=128)
    options: dict[str, Any] = {"splits": splits, "allow_fp16_scores": True}
    first = attention(s, ctas=1, **options)
    for seed in range(5):
        again = attention(s, ctas=1 + seed % 4, simulation=draw(seed), **options)
        assert again.findings == []
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)


def test_nan_reaches_its_rows_only() -> None:
    s = make([8, 8], [70, 70])
    s.q_scale[3, 1] = math.nan
    out, lse, findings = attention(s, allow_fp16_scores=True)
    assert findings == []
    bad = torch.zeros_like(out, dtype=torch.bool)
    bad[3, 1] = True
    assert torch.equal(out.isnan(), bad)
    assert lse.isnan().sum() == 1
