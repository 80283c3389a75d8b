"""The attention implementation for transformers, called as transformers calls it."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wlib
from example_modules import example as load
from test_prefill import extra_score, float32_bounds
from wlib.reference import prefill as reference

HEADS, KV_HEADS, KEYS = 4, 2, 90


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("transformers_attention")


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
        (KEYS, {"new_keys": "fp8", "attention_mask": mask((17, KEYS), (0, 71))}),
        (40, {"new_keys": "fp8", "attention_mask": mask((17, KEYS), (0, 71))}),
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
        if "new_keys" in options:
            for stored, t in ((keys, k), (values, v)):
                codes, scales = wlib.fp8_quantize(filled(t[KEYS - queries :][asked]))
                stored[len(stored) - len(codes) :] = codes.double() * scales[..., None]
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
    example.register()
    (int4, *mask4), (fp8, *mask8) = (known.pop(name) for name in example.ARMS)
    assert not known
    assert int4 is fp8.func is example.int4_attention
    assert fp8.keywords == {"new_keys": "fp8"}
    assert mask4 == mask8 == [masks.flash_attention_mask]


# What is added to logits, and by what share the hidden states behind two layers grow.
CHANGES = {
    "own": ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
    "wlib_int4": ([[1.0, -1.0], [0.0, 0.0]], [0.1, 0.2]),
    "wlib_int4_fp8": ([[0.0, 0.0], [0.0, 5.0]], [0.0, 0.5]),
}


class Model:
    """Answers chunk by chunk; its cache is how many tokens it has seen."""

    attention = "own"

    def forward(self, ids: Tensor, past_key_values: int | None = None) -> None: ...

    def __call__(
        self, ids: Tensor, use_cache: bool, output_hidden_states: bool, **past: Any
    ) -> Any:
        (name,) = past
        assert name in inspect.signature(self.forward).parameters
        assert use_cache
        assert output_hidden_states
        start = past[name] or 0
        end = start + ids.shape[1]
        assert ids[0].tolist() == list(range(start, end))
        added, layers = CHANGES[self.attention]
        logits = torch.tensor([[3.0, 4.0], [0.0, 5.0]]) + torch.tensor(added)
        state = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
        states = [state, *(state * (1 + change) for change in layers)]
        outputs = {
            "logits": logits[None, start:end],
            "hidden_states": tuple(x[None, start:end] for x in states),
            name: end,
        }
        return type("Output", (dict,), {"__getattr__": dict.__getitem__})(outputs)

    def set_attn_implementation(self, name: str) -> None:
        self.attention = name


class RenamedCache(Model):
    def forward(self, ids: Tensor, cache: int | None = None) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize("model", [Model, RenamedCache])
def test_compare_measures_the_change(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, model: type[Model]
) -> None:
    monkeypatch.setattr(example, "register", lambda: None)
    monkeypatch.setattr(example, "CHUNK", 1)
    int4, fp8 = example.compare(model(), torch.arange(2)[None])
    assert [int4.arm, fp8.arm] == list(example.ARMS.values())
    assert int4.rmse == pytest.approx(0.2)  # sqrt(2) of sqrt(50)
    assert int4.cosine == pytest.approx(49 / 50)
    assert int4.same_choice == 0.5
    assert int4.by_position == pytest.approx([2**0.5 / 5, 0])
    assert int4.by_layer == pytest.approx([0.1, 0.2])
    assert fp8.by_position == pytest.approx([0, 1])
    assert fp8.by_layer == pytest.approx([0, 0.5])
    assert fp8.same_choice == 1


def test_it_draws_and_prints_the_errors(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(example, "CHUNK", 2)
    results = [
        example.Result("INT4", 0.125, 0.99, 0.75, [0.1, 0.2, 0.3], [0.2, 0.4]),
        example.Result("FP8", 0.0625, 0.999, 0.875, [0.01, 0.02, 0.04], [0.1, 0.05]),
    ]
    left, right = example.plot(results, "a model", tmp_path / "attention.svg").axes
    assert "a model with" in left.figure.get_suptitle()
    assert "<svg" in (tmp_path / "attention.svg").read_text()[:1000]
    int4, fp8, _ = (list(line.get_ydata()) for line in left.lines)
    assert int4 == pytest.approx([10, 20, 30])
    assert fp8 == pytest.approx([1, 2, 4])
    assert list(left.lines[2].get_xdata()) == [2, 2]  # where the second chunk begins
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 2], [1, 2]]
    assert [list(line.get_ydata()) for line in right.lines] == [[20, 40], [10, 5]]
    for axes in (left, right):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["INT4", "FP8"]
    tiny = SimpleNamespace(config=SimpleNamespace(vocab_size=9), to=lambda device: tiny)
    monkeypatch.setattr(example, "small_llama", lambda: tiny)
    monkeypatch.setattr(example, "compare", lambda model, ids: results)
    example.main(["--device", "cpu", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/transformers_attention.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(number in printed for number in ("0.12500", "0.99900", "0.87500"))
