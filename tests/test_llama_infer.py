"""The inference example, small: a Llama before and after its weights, keys and values are INT4."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from example_modules import example
from wlib.layout import packed_shape
from wlib.nn import Int4Fp8Linear, replace_linear

# A folder's model: two query heads over one of keys and values, and a head tied to the embedding.
CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": torch.finfo(torch.float32).eps,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def infer() -> ModuleType:
    return example("llama_infer")


@dataclass
class Compared:
    model: Any  # as the last arm left it
    results: list[Any]


@pytest.fixture(scope="module")
def compared(infer: ModuleType) -> Compared:
    texts = infer.corpus()
    model = infer.train(infer.PRESETS["test"], texts, quiet=True)
    results = infer.compare(model, texts, infer.SIZES["test"], quiet=True)
    return Compared(model, results)


def test_perplexity_stays(infer: ModuleType, compared: Compared) -> None:
    before, *after = (result.perplexity for result in compared.results)
    assert 4 < before < 18
    for perplexity in after:
        # Seen: 0.9996 to 1.001. Without attention: 1.6.
        assert 0.99 < perplexity / before < 1.01
    assert len({result.perplexity for result in compared.results}) == 3


def test_bytes(infer: ModuleType, compared: Compared) -> None:
    p = infer.PRESETS["test"]
    linears = [(p.width, p.width)] * 4 + [(p.inner, p.width)] * 2 + [(p.width, p.inner)]
    rest = 2 * (2 * 256 * p.width + (2 * p.layers + 1) * p.width)  # embedding, head and norms
    group = infer.group_size(compared.model)
    packed = sum(torch.Size(packed_shape(*shape, group, False)).numel() for shape in linears)
    means = p.layers * p.width * 4
    bf16, weights, cache = compared.results
    assert bf16.weight_bytes == rest + p.layers * 2 * sum(n * k for n, k in linears)
    assert weights.weight_bytes == rest + p.layers * packed
    assert cache.weight_bytes == weights.weight_bytes + means
    assert bf16.cache_bytes == weights.cache_bytes == p.layers * 2 * p.width * 2
    assert cache.cache_bytes == p.layers * p.heads * (64 + 8)
    layers = [m for m in compared.model.modules() if isinstance(m, Int4Fp8Linear)]
    assert len(layers) == 7 * p.layers


@pytest.fixture
def folder(infer: ModuleType, tmp_path: Path) -> Path:
    """A checkpoint of random weights, as Hugging Face names them."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    llama = example("llama_model")
    config = llama.Config.from_folder(tmp_path)
    state = llama.Llama(config, torch.bfloat16, "cpu").state_dict()
    del state["lm_head.weight"]
    rng = torch.Generator().manual_seed(0)
    for tensor in state.values():
        scale = 0.2 if tensor.dim() == 2 else 1.0
        tensor.copy_(torch.randn(tensor.shape, generator=rng) * scale)
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


@torch.no_grad()
def test_chunks_and_decoding_give_the_bits_of_one_pass(infer: ModuleType, folder: Path) -> None:
    """Keys and values, hidden states and the tokens chosen from them."""
    model = example("llama_model").Llama.from_folder(folder, "cpu")
    prompt = torch.randint(256, (75,), generator=torch.Generator().manual_seed(2))
    assert len(replace_linear(model, Int4Fp8Linear, skip=("lm_head",))) == 14
    model.use_floats(75)
    model.use_int4(128, model.key_means([prompt, prompt]))
    written = infer.generate(model, prompt, 30, chunk=16)
    everything = torch.cat([prompt, torch.tensor(written)])
    pieces = [caches(model, len(everything) - 1)]
    parts = [model.model(part, 9 * i) for i, part in enumerate(everything[:-1].split(9))]
    pieces.append(caches(model, len(everything) - 1))
    hidden = model.model(everything[:-1])
    whole = caches(model, len(everything) - 1)
    assert torch.equal(torch.cat(parts), hidden)
    for codes in pieces:
        assert all(torch.equal(a, b) for a, b in zip(codes, whole, strict=True))
    behind = [infer.choose(model, hidden[: i + 1]) for i in range(len(prompt) - 1, len(hidden))]
    assert behind == written
    assert len(set(written)) > 5
    likely = model.lm_head(hidden).float().log_softmax(-1)
    nats = -likely[torch.arange(len(hidden)), everything[1:]]  # each of the token behind it
    assert torch.equal(infer.losses(model, everything, 9), nats)
    for layer in model.model.layers:
        # The mean key is that of the prompt, but for 75 roundings and, in the
        # second layer, what INT4 attention of the first does to its inputs: 0.09 and 0.27 of it.
        attend = layer.self_attn.cached.attend
        found = attend.kv.dequantize()[0][:75].mean(0)
        assert (found - attend.k_mean).norm() < attend.k_mean.norm() / 2


def caches(model: Any, tokens: int) -> list[Tensor]:
    """A copy of what the layers' caches hold of the first tokens, keys and values in turn."""
    attentions = [layer.self_attn.cached.attend for layer in model.model.layers]
    return [t[:tokens] for a in attentions for t in a.kv.dequantize()]


@torch.no_grad()
def test_a_folder_is_the_model_that_it_says(folder: Path) -> None:
    """Against the training examples' model, which has as many heads of keys as of queries."""
    small, llama = example("small_llama"), example("llama_model")
    model = llama.Llama.from_folder(folder, "cpu").float()
    plain = small.Llama(small.Preset(128, 2, 128, 2, 32, 1, 1, 0.0, 1))
    state = {name: model.state_dict()[f"model.{name}"] for name in ("norm.weight",)}
    state["embedding.weight"] = state["head.weight"] = model.model.embed_tokens.weight
    for i, layer in enumerate(model.model.layers):
        heads = layer.self_attn
        twice = [f.weight.repeat(2, 1) for f in (heads.k_proj, heads.v_proj)]
        state |= {
            f"blocks.{i}.qkv.weight": torch.cat([heads.q_proj.weight, *twice]),
            f"blocks.{i}.merge.weight": heads.o_proj.weight,
            f"blocks.{i}.gate_up.weight": torch.cat(
                [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]
            ),
            f"blocks.{i}.down.weight": layer.mlp.down_proj.weight,
            f"blocks.{i}.attention_norm.weight": layer.input_layernorm.weight,
            f"blocks.{i}.norm.weight": layer.post_attention_layernorm.weight,
        }
    plain.load_state_dict(state)
    ids = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(1))
    expected = plain(ids)[0]
    model.use_floats(40)
    # Float32 sums of some hundred terms, through two layers, of logits as large as 10.
    torch.testing.assert_close(model(ids[0]), expected, rtol=0, atol=1e-3)
    parts = [model(part, 7 * i) for i, part in enumerate(ids[0].split(7))]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-3)
    back = llama.Llama.from_small(plain, torch.float32)
    back.use_floats(40)
    torch.testing.assert_close(back(ids[0]), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "qwen2", "expected model_type of 'llama', got 'qwen2'"),
        ("hidden_act", "gelu", "expected hidden_act of 'silu', got 'gelu'"),
        ("attention_bias", True, "expected attention_bias of False, got True"),
        ("mlp_bias", True, "expected mlp_bias of False, got True"),
        ("rope_scaling", {"type": "yarn"}, "expected rope_type of 'default', got 'yarn'"),
        ("rope_parameters", {"rope_type": "x"}, "expected rope_type of 'default', got 'x'"),
    ],
)
def test_refused_models(tmp_path: Path, field: str, value: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {field: value}))
    with pytest.raises(ValueError, match=message):
        example("llama_model").Config.from_folder(tmp_path)


def test_an_int4_checkpoint_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = example("llama_model")
    monkeypatch.setattr(llama, "load_model", lambda model, source: ["a", "b"])
    with pytest.raises(
        ValueError, match=r"expected floating point weights, got INT4: \['a', 'b'\]"
    ):
        llama.Llama.from_folder(folder, "cpu")


def test_older_and_newer_configs(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    older = {k: v for k, v in CONFIG.items() if k not in ("head_dim", "num_key_value_heads")}
    for fields, theta, kv_heads in (
        (CONFIG | {"rope_parameters": rope}, 5e5, 1),
        (older | {"rope_theta": 1e6, "rms_norm_eps": 1e-3}, 1e6, 2),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        llama = example("llama_model")
        config = llama.Config.from_folder(tmp_path)
        assert (config.theta, config.kv_heads, config.head_dim) == (theta, kv_heads, 64)
        model = llama.Llama(config, torch.float32, "cpu").model
        norms = [m for m in model.modules() if isinstance(m, torch.nn.RMSNorm)]
        assert {norm.eps for norm in norms} == {fields["rms_norm_eps"]}
        chunk = llama.Chunk.at(3, 2, config, torch.device("cpu"))  # tokens 3 and 4
        assert chunk.cos[1, 1].item() == pytest.approx(math.cos(4 * theta ** (-1 / 32)), abs=1e-6)
        assert chunk.sin[1, 1].item() == pytest.approx(math.sin(4 * theta ** (-1 / 32)), abs=1e-6)


def test_a_missing_package_is_named(
    infer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit, match="package tokenizers"):
        infer.tokenized(tmp_path, infer.corpus())


def test_it_runs_on_a_folder(
    infer: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setattr(infer, "TEXT_BYTES", 20_000)
    out = tmp_path / "out"
    infer.main(["--model", str(folder), "--preset", "test", "--out", str(out)])
    kept = json.loads((out / "results.json").read_text())["results"]
    assert [result["arm"] for result in kept] == list(infer.ARMS)
    assert (out / "llama_infer.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for result in kept:
        assert len(result["written"]) == infer.SIZES["test"].written
        assert len(result["losses"]) == infer.SIZES["test"].length
        assert f"{result['cache_bytes']:,}" in printed
        assert all(ms > 0 for ms in result["first_token"].values())
