"""Prefill attention on the GPU: the problems of the simulator and longer ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from prefill_problems import check_result
from test_prefill import Sequences, make


def move(value: Any) -> Any:
    return value.cuda() if isinstance(value, Tensor) else value


def attention(s: Sequences, **options: Any) -> tuple[Tensor, Tensor]:
    kv = s.kv
    names = ("k", "v", "k_scale", "v_scale", "k_mean", "k_smooth")
    cache = wlib.Int4KVCache(*(move(getattr(kv, name)) for name in names))
    arguments = {name: move(value) for name, value in (s.arguments | options).items()}
    out, lse = wlib.attention_prefill(s.q8.cuda(), cache, **arguments)
    return out.cpu(), lse.cpu()


def check(s: Sequences, **options: Any) -> None:
    check_result(s, *attention(s, **options), **options)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (16, 1), (3, 1)])
def test_causal(dim: int, heads: int, kv_heads: int, half: bool) -> None:
    for queries, cached in (([65, 1, 7], [65, 64, 200]), ([300, 0, 500], [1000, 7, 3000])):
        s = make(queries, cached, heads=heads, kv_heads=kv_heads, dim=dim)
        check(s, allow_fp16_scores=half)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_fp16_scores_with_windows_splits_and_every_scale(dim: int) -> None:
    s = make([70, 300], [350, 64], dim=dim, smooth=True)
    s.q_scale[4:8] *= -1
    for scale in (0.01, 0.1, -0.1, 0.5):
        check(s, softmax_scale=scale, allow_fp16_scores=True, window_size=(100, 0))
        check(s, softmax_scale=scale, allow_fp16_scores=True, causal=False, num_splits=3)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (64, 5), (1000, 1000)])
def test_windows_and_new_keys(dim: int, window: tuple[int, int]) -> None:
    for causal in (True, False):
        s = make([70, 300], [350, 64], dim=dim, new=True, smooth=True)
        check(s, causal=causal, window_size=window)


@pytest.mark.parametrize("splits", [0, 1, 2, 32])
def test_split_keys_and_sinks(splits: int) -> None:
    s = make([3, 20], [5000, 130], dim=128, new=True)
    check(s, num_splits=splits, sinks=torch.tensor([-1.0, 0.0, 1.0, 20.0]))
    check(make([33], [130], smooth=True), softcap=5.0, num_splits=splits)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_equal_scores_give_the_exact_mean(dim: int) -> None:
    """Every probability is one, so that nothing rounds."""
    s = make([64], [512], dim=dim)
    s.q8.view(torch.uint8).zero_()
    s.kv.v_scale.fill_(0.5)
    _, values = s.kv.dequantize()
    pages = s.arguments["page_table"][0, :8]
    slots = (pages[:, None] * 64 + torch.arange(64)).flatten()
    expected = values[slots].double().mean(0).repeat_interleave(2, 0).expand(64, -1, -1)
    out, _ = attention(s, causal=False, num_splits=1)
    assert torch.equal(out.double(), expected)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("splits", [1, 4])
def test_runs_agree_bit_for_bit(splits: int, half: bool) -> None:
    s = make([300, 500], [1000, 3000], dim=128, new=not half)
    first, first_lse = attention(s, num_splits=splits, allow_fp16_scores=half)
    for _ in range(5):
        out, lse = attention(s, num_splits=splits, allow_fp16_scores=half)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)
