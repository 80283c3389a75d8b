"""Attention of chunks of tokens over a paged INT4 cache that the module fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import check_device, check_dtype, check_shape, refuse
from ..prefill import BLOCK_SIZE, Int4KVCache, attention_prefill, quantize_q_fp8
from ..quantizer import fp8_quantize

_NAME = "wlib.nn.Int4PrefillAttention"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_GROUP = 16
_FLOAT_BUFFERS = ("k_scale", "v_scale", "k_mean", "k_smooth", "sinks")


class Int4PrefillAttention(nn.Module):
    """softmax(scale * q k^T) v of new tokens over an INT4 cache, which it writes k and v to first.

    One call takes a chunk of each sequence of a batch: it rotates q and k if it is given angles,
    quantises q to E4M3, writes k and v into the cache behind the tokens that are there, and attends
    (FireQ, arXiv 2505.20839). Chunks of one token are decoding. For inference: no gradients.

    The cache is scratch: it moves and is copied with the module and is not part of the state dict,
    whose tensors are `k_mean`, `k_smooth` and `sinks`. Change the first two only while no token in
    use was written with others. A change of dtype leaves every buffer as it is.

    Args:
        num_heads, num_kv_heads: query heads, up to 16 per KV head.
        head_dim: 64, 128 or 256.
        num_blocks: blocks of 64 tokens that the cache has, for all sequences.
        softmax_scale, causal, window_size, softcap: as `wlib.attention_prefill` takes them.
        sinks: None or float32 [num_heads], a score per head without a value.
        k_mean: None or float32 [num_kv_heads, head_dim], taken off keys before they are quantised,
            as their mean over calibration tokens; after RoPE.
        k_smooth: None or float32 [num_kv_heads, head_dim], multiplied onto keys, divides queries.
            Under RoPE, channels i and i + head_dim / 2 need not have one factor.
        new_keys: what a chunk's queries see of the chunk's own keys and values: "int4", the cache,
            so that chunks change nothing, or "fp8", E4M3 with a scale per token and head, which is
            closer to k and v. The cache holds INT4 either way.
        device: where the buffers live.

    Attributes:
        k_cache, v_cache, k_scale, v_scale: the tensors of `kv`, see `wlib.Int4KVCache`.

    Raises:
        TypeError: a tensor is not float32.
        ValueError: a size or a shape does not fit.
    """

    k_cache: Tensor
    v_cache: Tensor
    k_scale: Tensor
    v_scale: Tensor
    k_mean: Tensor | None
    k_smooth: Tensor | None
    sinks: Tensor | None

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        *,
        softmax_scale: float | None = None,
        causal: bool = True,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        k_mean: Tensor | None = None,
        k_smooth: Tensor | None = None,
        new_keys: Literal["int4", "fp8"] = "int4",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
            expected = "num_heads that num_kv_heads divides, both at least 1"
            refuse(_NAME, expected, (num_heads, num_kv_heads), "num_heads")
        if num_heads // num_kv_heads > _LARGEST_GROUP:
            expected = f"at most {_LARGEST_GROUP} query heads per KV head"
            refuse(_NAME, expected, num_heads // num_kv_heads, "num_heads")
        if softcap < 0:
            refuse(_NAME, "softcap of 0 (none) or more", softcap, "softcap")
        if new_keys not in ("int4", "fp8"):
            refuse(_NAME, "'int4' or 'fp8'", repr(new_keys), "new_keys")
        shapes = {"k_mean": (num_kv_heads, head_dim), "sinks": (num_heads,)}
        shapes["k_smooth"] = shapes["k_mean"]
        given = {"k_mean": k_mean, "k_smooth": k_smooth, "sinks": sinks}
        for name, tensor in given.items():
            if tensor is not None:
                check_dtype(_NAME, name, tensor, torch.float32)
                check_shape(_NAME, name, tensor, shapes[name])
        kv = Int4KVCache.allocate(num_blocks, num_kv_heads, head_dim, device)
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.softmax_scale = head_dim**-0.5 if softmax_scale is None else float(softmax_scale)
        self.causal, self.window_size, self.softcap = causal, window_size, float(softcap)
        self.new_keys = new_keys
        self.register_buffer("k_cache", kv.k, persistent=False)
        self.register_buffer("v_cache", kv.v, persistent=False)
        self.register_buffer("k_scale", kv.k_scale, persistent=False)
        self.register_buffer("v_scale", kv.v_scale, persistent=False)
        for name, tensor in given.items():
            copy = None if tensor is None else tensor.detach().to(kv.k.device, copy=True)
            self.register_buffer(name, copy)

    @property
    def kv(self) -> Int4KVCache:
        """The cache, sharing its data with the module."""
        scales = (self.k_scale, self.v_scale)
        return Int4KVCache(self.k_cache, self.v_cache, *scales, self.k_mean, self.k_smooth)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        max_seqlen_q: int,
        seqlens_cached: Tensor,
        page_table: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        num_splits: int = 0,
    ) -> Tensor:
        """Write a chunk's keys and values and attend from its queries.

        Args:
            q: float32, float16 or bfloat16 [T, num_heads, head_dim], the chunks one after another.
            k, v: [T, num_kv_heads, head_dim] of the same dtype.
            cu_seqlens_q: int32 [batch + 1], first token of each sequence's chunk, then T.
            max_seqlen_q: at least the longest chunk.
            seqlens_cached: int32 [batch], tokens that the cache holds of each sequence before this
                call; the chunk is written behind them.
            page_table: int32 [batch, max_blocks], the blocks of each sequence in order, those that
                the chunk needs included. No two sequences may share a block that is written.
            cos, sin: None or float32 [T, head_dim / 2], RoPE by the position of each token, see
                `wlib.quantize_q_fp8`; None if q and k are rotated already.
            num_splits: as `wlib.attention_prefill` takes it.

        Returns:
            [T, num_heads, head_dim] in the dtype of q or of the enclosing autocast.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, a device or a value does not fit; nothing was written. On a GPU,
                and in a compiled graph, the contents of the index tensors are not looked at.
            NotImplementedError: no kernel serves the device.
        """
        if num_splits < 0:
            refuse(_NAME, "num_splits of 0 (automatic) or more", num_splits, "num_splits")
        self._check(q, k, v, cu_seqlens_q, seqlens_cached, page_table)
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_contents(len(q), cu_seqlens_q, max_seqlen_q, seqlens_cached, page_table)
        kv, autocast = self.kv, torch.is_autocast_enabled(q.device.type)
        q8, q_scale = quantize_q_fp8(q, self.k_smooth, cos, sin)
        if cos is not None and sin is not None:
            k = _rotate(k, cos, sin)
        kv.append(k, v, _slots(len(q), cu_seqlens_q, seqlens_cached, page_table))
        used = seqlens_cached
        new: dict[str, Any] = {}
        if self.new_keys == "int4":
            used = seqlens_cached + cu_seqlens_q.diff()
        else:
            new["k_new"], new["k_new_scale"] = fp8_quantize(self._smoothed(k).contiguous())
            new["v_new"], new["v_new_scale"] = fp8_quantize(v.contiguous())
        out = attention_prefill(
            q8,
            kv,
            q_scale=q_scale,
            cu_seqlens_q=cu_seqlens_q,
            max_seqlen_q=max_seqlen_q,
            seqused_k=used,
            page_table=page_table,
            **new,
            softmax_scale=self.softmax_scale,
            causal=self.causal,
            window_size=self.window_size,
            softcap=self.softcap,
            sinks=self.sinks,
            out_dtype=torch.get_autocast_dtype(q.device.type) if autocast else q.dtype,
            num_splits=num_splits,
            return_lse=False,
        )
        assert isinstance(out, Tensor)
        return out

    def _smoothed(self, k: Tensor) -> Tensor:
        """Keys as the cache's codes stand for them."""
        if self.k_mean is not None:
            k = k.float() - self.k_mean
        return k if self.k_smooth is None else k.float() * self.k_smooth

    def _check(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, cached: Tensor, table: Tensor
    ) -> None:
        """Every dtype, shape and device, before anything is written."""
        check_dtype(_NAME, "q", q, *_FLOATS)
        if q.dim() != 3 or q.shape[1:] != (self.num_heads, self.head_dim):
            expected = f"q of shape [T, {self.num_heads}, {self.head_dim}]"
            refuse(_NAME, expected, list(q.shape), "q")
        for name, tensor in (("k", k), ("v", v)):
            check_dtype(_NAME, name, tensor, q.dtype)
            check_shape(_NAME, name, tensor, (len(q), self.num_kv_heads, self.head_dim))
        indices = {"cu_seqlens_q": starts, "seqlens_cached": cached, "page_table": table}
        for name, tensor in indices.items():
            check_dtype(_NAME, name, tensor, torch.int32)
        if starts.dim() != 1 or len(starts) < 1:
            refuse(_NAME, "cu_seqlens_q of shape [batch + 1]", list(starts.shape), "cu_seqlens_q")
        batch = len(starts) - 1
        check_shape(_NAME, "seqlens_cached", cached, (batch,))
        if table.dim() != 2 or len(table) != batch:
            expected = f"page_table of shape [{batch}, max_blocks]"
            refuse(_NAME, expected, list(table.shape), "page_table")
        for name, tensor in {"q": q, "k": k, "v": v, **indices}.items():
            check_device(_NAME, name, tensor, self.k_cache.device)

    def _check_contents(
        self, tokens: int, starts: Tensor, longest: int, cached: Tensor, table: Tensor
    ) -> None:
        """What the indices say, which takes a look at them."""
        first = starts.tolist()
        new = starts.diff()
        if first[0] != 0 or first[-1] != tokens or bool((new < 0).any()):
            expected = f"cu_seqlens_q from 0 to {tokens}, not decreasing"
            refuse(_NAME, expected, first, "cu_seqlens_q")
        if longest < max([0, *new.tolist()]):
            expected = f"max_seqlen_q of at least {int(new.max())}"
            refuse(_NAME, expected, longest, "max_seqlen_q")
        room = table.shape[1] * BLOCK_SIZE
        bad = (cached < 0) | (cached.long() + new > room)
        if bad.any():
            expected = f"tokens from 0 to {room}, the page table's columns times {BLOCK_SIZE}"
            found = f"{cached[bad].tolist()} cached and {new[bad].tolist()} new ones"
            refuse(_NAME, expected, found, "seqlens_cached")
        needed = (cached.long() + new + BLOCK_SIZE - 1) // BLOCK_SIZE
        blocks = table[torch.arange(table.shape[1]) < needed[:, None]]
        bad = (blocks < 0) | (blocks >= len(self.k_cache))
        if bad.any():
            expected = f"blocks from 0 to {len(self.k_cache) - 1}"
            refuse(_NAME, expected, int(blocks[bad][0]), "page_table")

    def extra_repr(self) -> str:
        """Sizes and options, as `print` shows them."""
        sizes = f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
        sizes += f", head_dim={self.head_dim}, num_blocks={len(self.k_cache)}"
        options = f", causal={self.causal}, window_size={self.window_size}"
        return f"{sizes}{options}, softcap={self.softcap}, new_keys={self.new_keys!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4PrefillAttention:
        before = {name: getattr(self, name) for name in _FLOAT_BUFFERS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Casts spare the codes but not what the kernels read as float32.
        for name, tensor in before.items():
            if tensor is not None and getattr(self, name).dtype != tensor.dtype:
                setattr(self, name, tensor.to(self.k_cache.device))
        return self


def _rotate(k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in float32, rounded to k's dtype, as `quantize_q_fp8` rotates queries."""
    first, second = k.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(k.dtype)


def _slots(tokens: int, starts: Tensor, cached: Tensor, table: Tensor) -> Tensor:
    """The slot of each token, behind the cached ones of its sequence; int64 [tokens]."""
    token = torch.arange(tokens, dtype=torch.int32, device=starts.device)
    sequence = torch.searchsorted(starts[1:].contiguous(), token, right=True)
    position = cached[sequence] + token - starts[sequence]
    block = table[sequence, position // BLOCK_SIZE].long()
    return block * BLOCK_SIZE + position % BLOCK_SIZE
