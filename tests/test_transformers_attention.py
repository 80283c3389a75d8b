"""The attention implementation for transformers, called as transformers calls it."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wlib
from test_prefill import extra_score, float32_bounds
from wlib.reference import prefill as reference

EXAMPLE = Path(__file__).parents[1] / "examples" / "transformers_attention.py"
HEADS, KV_HEADS, KEYS = 4, 2, 90


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transformers_attention", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layer(is_causal: bool = True) -> nn.Module:
    module = nn.Module()
    module.is_causal = is_causal
    return module


def tensors(queries: int, dim: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [2, heads, tokens, dim], heads and tokens transposed as layers do it."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, tokens, heads, dim, generator=rng).transpose(1, 2)
        for tokens, heads in ((queries, HEADS), (KEYS, KV_HEADS), (KEYS, KV_HEADS))
    )
    return q, k, v


def mask(*rows: tuple[int, int]) -> Tensor:
    """[2, KEYS], ones from the first to the last token of each row."""
    position = torch.arange(KEYS)
    return torch.stack([(position >= first) & (position < end) for first, end in rows]).long()


def dequantized(k: Tensor, v: Tensor) -> tuple[wlib.Int4KVCache, Tensor, Tensor]:
    """Keys and values [T, heads, dim] after INT4, in float64, and the cache that held them."""
    kv, _ = wlib.quantize_kv_int4(k, v, torch.tensor([0, len(k)], dtype=torch.int32))
    got_k, got_v = kv.dequantize()
    return kv, got_k[: len(k)].double(), got_v[: len(k)].double()


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (KEYS, {}),
        (KEYS, {"attention_mask": mask((17, KEYS), (0, KEYS))}),
        (KEYS, {"attention_mask": mask((0, KEYS), (0, 71))}),
        (5, {"attention_mask": mask((40, KEYS), (0, KEYS))}),
        (1, {"scaling": 0.3}),
        (KEYS, {"sliding_window": 10, "attention_mask": mask((3, KEYS), (60, KEYS))}),
        (KEYS, {"sliding_window": 10, "is_causal": False}),
        (KEYS, {"softcap": 5.0, "s_aux": torch.linspace(-2, 2, HEADS)}),
        (KEYS, {"is_causal": False, "position_ids": torch.arange(KEYS)}),
    ],
)
@pytest.mark.parametrize("dim", [64, 80])
def test_against_float64(
    example: ModuleType, queries: int, options: dict[str, Any], dim: int
) -> None:
    query, key, value = tensors(queries, dim)
    given = {"attention_mask": None, "dropout": 0.0} | options
    out, weights = example.int4_attention(layer(), query, key, value, **given)
    assert weights is None
    assert out.shape == (2, queries, HEADS, dim)
    seen = torch.ones(2, KEYS) if given["attention_mask"] is None else given["attention_mask"]
    causal, window = options.get("is_causal", True), options.get("sliding_window", math.inf)
    left = -1 if window == math.inf else int(window) - 1
    scale = options.get("scaling", dim**-0.5)
    for b in range(2):
        tokens = seen[b].bool()
        asked = tokens[KEYS - queries :]
        q, k, v = (t[b].transpose(0, 1) for t in (query, key, value))
        kv, keys, values = dequantized(*(filled(t[tokens]) for t in (k, v)))
        q8, q_scale = wlib.quantize_q_fp8(filled(q[asked]))
        q = q8.double() * q_scale[..., None]
        exact = reference.attention(
            q,
            keys,
            values,
            softmax_scale=scale,
            causal=causal,
            window_size=(left, -1 if causal else left),
            softcap=options.get("softcap", 0.0),
            sinks=options.get("s_aux"),
        )
        bound = float32_bounds(exact, q.shape[2], len(keys), extra_score(kv, q, scale)).out
        error = (filled(out[b][asked]).double() - exact.out).abs()
        assert (error <= bound).all(), (error / bound).max()
        assert not out[b][~asked].any()


def filled(x: Tensor) -> Tensor:
    """Zeros behind the last channel, up to a head_dim that there is."""
    dim = 64 if x.shape[-1] <= 64 else 128
    return nn.functional.pad(x, (0, dim - x.shape[-1]))


def test_the_layer_says_whether_it_is_causal(example: ModuleType) -> None:
    given = (*tensors(KEYS), None)
    causal, open_ = (example.int4_attention(layer(value), *given)[0] for value in (True, False))
    assert torch.equal(causal, example.int4_attention(nn.Module(), *given)[0])
    assert torch.equal(open_, example.int4_attention(layer(), *given, is_causal=False)[0])
    assert not torch.equal(causal, open_)


def test_dtype(example: ModuleType) -> None:
    query, key, value = (t.bfloat16() for t in tensors(7))
    assert example.int4_attention(layer(), query, key, value, None)[0].dtype == torch.bfloat16


def test_refusals(example: ModuleType) -> None:
    given = tensors(7)
    with pytest.raises(ValueError, match=r"dropout of 0, got 0\.1"):
        example.int4_attention(layer(), *given, None, dropout=0.1)
    with pytest.raises(ValueError, match=r"\[batch, keys\], got \[2, 1, 7, 90\]"):
        example.int4_attention(layer(), *given, torch.zeros(2, 1, 7, KEYS))
    with pytest.raises(ValueError, match="at most 256, got 320"):
        example.int4_attention(layer(), *tensors(7, 320), None)


def test_registration(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both registries, under one name; transformers itself is imported here only."""
    known: dict[str, list[Any]] = {}

    def register(name: str, function: Any) -> None:
        known.setdefault(name, []).append(function)

    registry = SimpleNamespace(register=register)
    module: Any = ModuleType("transformers")
    module.AttentionInterface = module.AttentionMaskInterface = registry
    masks: Any = ModuleType("transformers.masking_utils")
    masks.flash_attention_mask = object()
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", masks)
    assert example.register() == "wlib_int4"
    assert known == {"wlib_int4": [example.int4_attention, masks.flash_attention_mask]}


def test_compare_measures_the_change_of_the_logits(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        logits = torch.tensor([[3.0, 4.0], [0.0, 5.0]])

        def __call__(self, ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.logits)

        def set_attn_implementation(self, name: str) -> None:
            assert name == "wlib_int4"
            self.logits = torch.tensor([[4.0, 3.0], [0.0, 5.0]])

    monkeypatch.setattr(example, "register", lambda: "wlib_int4")
    found = example.compare(Model(), torch.zeros(2))
    assert found["relative RMSE"] == pytest.approx(0.2)  # sqrt(2) of sqrt(50)
    assert found["cosine"] == pytest.approx(49 / 50)
    assert found["same first choice"] == 0.5
