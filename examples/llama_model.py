"""A Llama-type decoder of one sequence, with a cache of floats or of INT4 codes.

Modules have the names that Llama checkpoints on Hugging Face use, so that `wlib.formats.load_model`
fills it from a folder of config.json and safetensors, without transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import small_llama
from wlib.formats import load_model
from wlib.nn import Int4PrefillAttention

BLOCK = 64  # tokens per block of the INT4 cache


@dataclass(frozen=True)
class Config:
    """Sizes and constants of a model."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10000.0
    eps: float = torch.finfo(torch.float32).eps
    tied: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> Config:
        """Of a checkpoint's config.json; refuses what `Llama` would compute wrongly."""
        found = json.loads((folder / "config.json").read_text())
        rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
        kinds = {
            "model_type": found.get("model_type"),
            "hidden_act": found.get("hidden_act", "silu"),
            "attention_bias": found.get("attention_bias", False),
            "mlp_bias": found.get("mlp_bias", False),
            "rope_type": rope.get("rope_type", rope.get("type", "default")),
        }
        served = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False,
                  "mlp_bias": False, "rope_type": "default"}  # fmt: skip
        for name, value in kinds.items():
            if value != served[name]:
                expected = f"{name} of {served[name]!r}"
                raise ValueError(f"{folder.name}/config.json: expected {expected}, got {value!r}")
        heads = found["num_attention_heads"]
        return cls(
            found["vocab_size"],
            found["hidden_size"],
            found["intermediate_size"],
            found["num_hidden_layers"],
            heads,
            found.get("num_key_value_heads") or heads,
            found.get("head_dim") or found["hidden_size"] // heads,
            rope.get("rope_theta", found.get("rope_theta", 10000.0)),
            found["rms_norm_eps"],
            found.get("tie_word_embeddings", False),
        )


@dataclass(frozen=True)
class Chunk:
    """Where some tokens of the sequence stand; the same for every layer."""

    cached: int  # tokens before them
    cos: Tensor  # float32 [T, head_dim / 2]
    sin: Tensor
    indices: Mapping[str, Any]  # the same for `wlib.nn.Int4PrefillAttention`

    @classmethod
    def at(cls, cached: int, tokens: int, config: Config, device: torch.device) -> Chunk:
        half = config.head_dim // 2
        rates = config.theta ** -(torch.arange(half, device=device) / half)
        angle = torch.arange(cached, cached + tokens, device=device)[:, None] * rates
        blocks = -(-(cached + tokens) // BLOCK)
        indices = {
            "cu_seqlens_q": torch.tensor([0, tokens], dtype=torch.int32, device=device),
            "max_seqlen_q": tokens,
            "seqlens_cached": torch.tensor([cached], dtype=torch.int32, device=device),
            "page_table": torch.arange(blocks, dtype=torch.int32, device=device)[None],
        }
        return cls(cached, angle.cos(), angle.sin(), indices)


class FloatAttention(nn.Module):
    """Causal attention of a chunk over a cache in the dtype of the model."""

    def __init__(self, config: Config, capacity: int, like: Tensor) -> None:
        super().__init__()
        for name in "kv":
            cache = like.new_zeros(capacity, config.kv_heads, config.head_dim)
            self.register_buffer(name, cache, persistent=False)

    @property
    def bytes_per_token(self) -> int:
        return (self.k.nbytes + self.v.nbytes) // len(self.k)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        """[T, heads, D] of q and of k, v -> [T, heads, D]."""
        start, end = chunk.cached, chunk.cached + len(q)
        self.k[start:end], self.v[start:end] = rotated(k, chunk), v
        q, k, v = (t.transpose(0, 1)[None] for t in (rotated(q, chunk), self.k[:end], self.v[:end]))
        mask = None
        if start and len(chunk.cos) > 1:
            mask = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": not start, "enable_gqa": True}
        return F.scaled_dot_product_attention(q, k, v, **options)[0].transpose(0, 1)


class Int4Attention(nn.Module):
    """The same over INT4 keys and values, of which `mean` [kv_heads, D] is taken off the keys."""

    def __init__(self, config: Config, capacity: int, mean: Tensor) -> None:
        super().__init__()
        sizes = (config.heads, config.kv_heads, config.head_dim, -(-capacity // BLOCK))
        self.attend = Int4PrefillAttention(*sizes, k_mean=mean, device=mean.device)

    @property
    def bytes_per_token(self) -> int:
        return self.attend.kv.bytes_per_token

    def forward(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        """[T, heads, D] of q and of k, v -> [T, heads, D]."""
        return self.attend(q, k, v, cos=chunk.cos, sin=chunk.sin, **chunk.indices)


def rotated(x: Tensor, chunk: Chunk) -> Tensor:
    """Rotary positions of [T, heads, D]."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = chunk.cos[:, None], chunk.sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.cached: nn.Module | None = None  # see `Llama.use_floats`

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        assert self.cached is not None
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in projections)
        return self.o_proj(self.cached(q, k, v, chunk).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.width, c.inner, bias=False)
        self.up_proj = nn.Linear(c.width, c.inner, bias=False)
        self.down_proj = nn.Linear(c.inner, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(c), FeedForward(c)
        self.input_layernorm = nn.RMSNorm(c.width, c.eps)
        self.post_attention_layernorm = nn.RMSNorm(c.width, c.eps)

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), chunk)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Ids [T], behind as many as are cached -> what the head reads, [T, width]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocabulary, c.width)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.width, c.eps)

    def forward(self, ids: Tensor, cached: int = 0) -> Tensor:
        chunk = Chunk.at(cached, len(ids), self.config, ids.device)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, chunk)
        return self.norm(x)


class Llama(nn.Module):
    """Ids [T], behind as many as are cached -> logits [T, vocabulary]. For inference."""

    def __init__(self, c: Config, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        with torch.device("meta"):  # nothing is drawn that is overwritten
            self.model, self.lm_head = Decoder(c), nn.Linear(c.width, c.vocabulary, bias=False)
        self.to(dtype).to_empty(device=device).requires_grad_(False).eval()
        if c.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def from_folder(cls, folder: Path, device: str) -> Llama:
        """A checkpoint's model in bfloat16.

        Raises:
            OSError: there is no config.json, or no weights.
            ValueError: they are no Llama model's in floating point; the message says what is not.
        """
        model = cls(Config.from_folder(folder), torch.bfloat16, device)
        if layers := load_model(model, folder):
            raise ValueError(f"{folder.name}: expected floating point weights, got INT4: {layers}")
        return model

    @classmethod
    def from_small(cls, trained: small_llama.Llama, dtype: torch.dtype) -> Llama:
        """The model of the training examples, its joined projections taken apart."""
        block: Any = trained.blocks[0]
        width, heads, inner = block.qkv.in_features, block.heads, block.down.in_features
        sizes = (width, inner, len(trained.blocks), heads, heads, width // heads)
        state = dict(trained.state_dict())
        renamed = {
            "model.embed_tokens.weight": state["embedding.weight"],
            "model.norm.weight": state["norm.weight"],
            "lm_head.weight": state["head.weight"],
        }
        for i in range(len(trained.blocks)):
            old, new = f"blocks.{i}.", f"model.layers.{i}."
            qkv, gate_up = (state[f"{old}{name}.weight"] for name in ("qkv", "gate_up"))
            for name, weight in zip("qkv", qkv.chunk(3), strict=True):
                renamed[f"{new}self_attn.{name}_proj.weight"] = weight
            for name, weight in zip(("gate", "up"), gate_up.chunk(2), strict=True):
                renamed[f"{new}mlp.{name}_proj.weight"] = weight
            renamed |= {
                f"{new}self_attn.o_proj.weight": state[f"{old}merge.weight"],
                f"{new}mlp.down_proj.weight": state[f"{old}down.weight"],
                f"{new}input_layernorm.weight": state[f"{old}attention_norm.weight"],
                f"{new}post_attention_layernorm.weight": state[f"{old}norm.weight"],
            }
        model = cls(Config(256, *sizes), dtype, str(state["norm.weight"].device))
        model.load_state_dict(renamed)
        return model

    def forward(self, ids: Tensor, cached: int = 0) -> Tensor:
        return self.lm_head(self.model(ids, cached))

    def use_floats(self, capacity: int) -> None:
        """A fresh cache of so many tokens in the dtype of the model."""
        for layer in self.model.layers:
            like = self.model.norm.weight
            layer.self_attn.cached = FloatAttention(self.model.config, capacity, like)

    def use_int4(self, capacity: int, means: list[Tensor]) -> None:
        """A fresh cache of INT4 keys and values, and each layer's mean of the keys."""
        for layer, mean in zip(self.model.layers, means, strict=True):
            layer.self_attn.cached = Int4Attention(self.model.config, capacity, mean)

    def key_means(self, batches: list[Tensor]) -> list[Tensor]:
        """The mean key of each layer, float32 [kv_heads, head_dim], in sequences of one length."""
        sums = [0.0 for _ in self.model.layers]
        for ids in batches:
            self(ids)
            for i, layer in enumerate(self.model.layers):
                sums[i] = sums[i] + layer.self_attn.cached.k[: len(ids)].float().mean(0)
        return [total / len(batches) for total in sums]

    def weight_bytes(self) -> int:
        """Of what a file would hold, means of keys included; what two names share counts once."""
        kept = {n: t for n, t in self.state_dict().items() if not n.endswith("_extra_state")}
        tensors = {t.data_ptr(): t for t in kept.values()}
        return sum(t.nbytes for t in tensors.values())

    def cache_bytes(self) -> int:
        """Of a token's keys, values and scales."""
        attentions = [layer.self_attn.cached for layer in self.model.layers]
        return sum(attention.bytes_per_token for attention in attentions)
