"""Attention over a cache of INT4 keys and values, with FP8 queries (FireQ, arXiv 2505.20839)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import (
    _ops,  # noqa: F401  fake kernels
    kv_layout,
)
from .errors import check_dtype, check_shape, refuse, typed_error
from .vllm_cache import VllmInt4Cache

_ALLOCATE = "wlib.Int4KVCache.allocate"
_APPEND = "wlib.Int4KVCache.append"
_QUANTIZE = "wlib.quantize_kv_int4"
_HEAD_DIMS = (64, 128, 256)
BLOCK_SIZE = kv_layout.BLOCK_TOKENS


@dataclass(eq=False)
class Int4KVCache:
    """A paged cache of INT4 keys and values: blocks of 64 tokens, a scale per token and head.

    Attributes:
        k, v: uint8 [num_blocks, num_kv_heads, head_dim * 32], see `wlib.kv_layout`.
        k_scale, v_scale: float32 [num_blocks, num_kv_heads, 64].
        k_mean: None or float32 [num_kv_heads, head_dim], taken off every key before it is
            quantised. It changes no attention output; `attention_prefill` corrects the LSE.
        k_smooth: None or float32 [num_kv_heads, head_dim], multiplied onto every key; queries are
            divided by it (`quantize_q_fp8`).
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor
    k_mean: Tensor | None = field(default=None)
    k_smooth: Tensor | None = field(default=None)

    @classmethod
    def allocate(
        cls,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device | str | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> Int4KVCache:
        """An empty cache: every slot holds zeros.

        Args:
            num_blocks, num_kv_heads: at least 1.
            head_dim: 64, 128 or 256.
            device: where the cache lives; None is torch's default.
            block_size: tokens per block; 64 is the one size there is.

        Raises:
            ValueError: an argument is out of range.
        """
        for name, value in (("num_blocks", num_blocks), ("num_kv_heads", num_kv_heads)):
            if value < 1:
                refuse(_ALLOCATE, f"{name} of at least 1", value, name)
        if head_dim not in _HEAD_DIMS:
            refuse(_ALLOCATE, "head_dim of 64, 128 or 256", head_dim, "head_dim")
        if block_size != BLOCK_SIZE:
            refuse(_ALLOCATE, f"block_size of {BLOCK_SIZE}", block_size, "block_size")
        codes, scales = (num_blocks, num_kv_heads, head_dim * 32), (num_blocks, num_kv_heads, 64)
        return cls(
            k=torch.zeros(codes, dtype=torch.uint8, device=device),
            v=torch.zeros(codes, dtype=torch.uint8, device=device),
            k_scale=torch.zeros(scales, device=device),
            v_scale=torch.zeros(scales, device=device),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of 64 tokens."""
        return self.k.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.k.shape[2] // 32

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token takes in this layer, keys, values and scales."""
        return self.num_kv_heads * (self.head_dim + 8)

    def append(
        self,
        k: Tensor,
        v: Tensor,
        slot_mapping: Tensor,
        k_mean: Tensor | None = None,
        k_smooth: Tensor | None = None,
    ) -> None:
        """Quantise tokens into slots: scale = absmax/7 per token and head, codes -7..7.

        Args:
            k, v: bfloat16, float16 or float32 [T, num_kv_heads, head_dim]; keys after RoPE.
            slot_mapping: int64 [T], block * 64 + offset; a token with a negative slot is skipped.
                Of tokens with one slot the last stays. A slot beyond the cache is refused on the
                CPU; a GPU, which does not look at contents beforehand, skips its token.
            k_mean, k_smooth: float32 [num_kv_heads, head_dim], what the first call of a cache
                gives; later calls leave them out or pass the same tensors.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, a device or a slot does not fit, or k_mean or k_smooth differ from
                those the cache was begun with.
            NotImplementedError: no kernel serves the device.
        """
        for name, given in (("k_mean", k_mean), ("k_smooth", k_smooth)):
            own = getattr(self, name)
            if given is None or given is own:
                continue
            if own is not None or bool(self.k_scale.any()) or bool(self.v_scale.any()):
                refuse(_APPEND, f"{name} as the cache was begun with", "another tensor", name)
        mean = self.k_mean if k_mean is None else k_mean
        smooth = self.k_smooth if k_smooth is None else k_smooth
        cache = (self.k, self.v, self.k_scale, self.v_scale)
        try:
            torch.ops.wlib.append_kv_int4(k, v, slot_mapping, *cache, k_mean=mean, k_smooth=smooth)
        except ValueError as error:
            raise typed_error(error) from None
        self.k_mean, self.k_smooth = mean, smooth

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """Keys and values, float32 [num_blocks * 64, num_kv_heads, head_dim], in slot order.

        k_smooth and k_mean are undone: key = code * scale / k_smooth + k_mean.
        """
        codes = kv_layout.unpack(self.k, BLOCK_SIZE).float()  # [blocks, heads, 64, head_dim]
        k = (codes * self.k_scale[..., None]).transpose(1, 2).flatten(0, 1)
        if self.k_smooth is not None:
            k = k / self.k_smooth
        if self.k_mean is not None:
            k = k + self.k_mean
        slots = kv_layout.value_slots(self.v.device)
        values = kv_layout.unpack(self.v, self.head_dim).float().transpose(2, 3)[:, :, slots]
        v = (values * self.v_scale[..., None]).transpose(1, 2).flatten(0, 1)
        return k, v


def quantize_kv_int4(
    k: Tensor,
    v: Tensor,
    cu_seqlens_k: Tensor,
    k_mean: Tensor | None = None,
    k_smooth: Tensor | None = None,
) -> tuple[Int4KVCache, Tensor]:
    """A cache of just these sequences, for data that is contiguous. Waits for the device.

    Args:
        k, v: bfloat16, float16 or float32 [T, num_kv_heads, head_dim].
        cu_seqlens_k: int32 [batch + 1], first token of each sequence, then T.
        k_mean, k_smooth: as `Int4KVCache.append`.

    Returns:
        kv: the cache.
        page_table: int32 [batch, max_blocks], the blocks of each sequence; 0 where it has none.

    Raises:
        TypeError, ValueError, NotImplementedError: as `Int4KVCache.append`.
    """
    check_dtype(_QUANTIZE, "cu_seqlens_k", cu_seqlens_k, torch.int32)
    if k.dim() != 3:
        refuse(_QUANTIZE, "k of shape [T, num_kv_heads, head_dim]", list(k.shape), "k")
    starts = cu_seqlens_k.tolist()
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    if not starts or starts[0] != 0 or min(lengths, default=0) < 0 or starts[-1] != len(k):
        expected = f"cu_seqlens_k from 0 to {len(k)}, not decreasing"
        refuse(_QUANTIZE, expected, starts, "cu_seqlens_k")
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(lengths), max([1, *blocks]), dtype=torch.int32)
    slots = torch.empty(len(k), dtype=torch.int64)
    first = 0
    for i, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        table[i, : blocks[i]] = torch.arange(first, first + blocks[i])
        slots[start : start + length] = first * BLOCK_SIZE + torch.arange(length)
        first += blocks[i]
    kv = Int4KVCache.allocate(max(first, 1), k.shape[1], k.shape[2], k.device)
    kv.append(k, v, slots.to(k.device), k_mean, k_smooth)
    return kv, table.to(k.device)


def quantize_q_fp8(
    q: Tensor,
    k_smooth: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise queries to E4M3 with a scale per token and head, after RoPE and smoothing.

    Args:
        q: bfloat16, float16 or float32 [T, num_heads, head_dim].
        k_smooth: None or float32 [num_kv_heads, head_dim], what keys were multiplied with; the
            queries of a KV head's group are divided by it.
        cos, sin: None or float32 [T, head_dim / 2] of each token's position: channels i and
            i + head_dim/2 are rotated into each other (the layout of Llama in transformers).

    Returns:
        q8: float8_e4m3fn [T, num_heads, head_dim].
        scale: float32 [T, num_heads] = absmax/448.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or a device does not fit.
        NotImplementedError: no kernel serves the device.
    """
    try:
        q8, scale = torch.ops.wlib.quantize_q_fp8(q, k_smooth=k_smooth, cos=cos, sin=sin)
    except ValueError as error:
        raise typed_error(error) from None
    return q8, scale


def attention_prefill(
    q8: Tensor,
    kv: Int4KVCache | VllmInt4Cache,
    *,
    q_scale: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    seqused_k: Tensor,
    page_table: Tensor,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    k_new_scale: Tensor | None = None,
    v_new_scale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_splits: int = 0,
    allow_fp16_scores: bool = False,
    return_lse: bool = True,
) -> tuple[Tensor, Tensor] | Tensor:
    """Attention of a chunk of queries over an INT4 cache, and over the chunk's own FP8 keys.

    Sequence b has the keys of its seqused_k[b] cached tokens and, with k_new, one key behind them
    for each of its queries. Its last query is aligned with its last key: with causal=True query i
    of n sees the keys up to i + (keys - n).

    Args:
        q8: float8_e4m3fn [Tq, Hq, D] of all sequences, D = 64, 128 or 256 (`quantize_q_fp8`).
        kv: the cache, Hkv heads; Hq is a multiple of Hkv, up to 16 times. With a `VllmInt4Cache`
            everything is in the space of its rotated keys and values: q8 comes from
            `rotate_queries`, k_new and v_new are rotated, and `restore` takes the output back.
        q_scale: float32 [Tq, Hq].
        cu_seqlens_q: int32 [batch + 1], first query of each sequence, then Tq.
        max_seqlen_q: at least the longest sequence of queries.
        seqused_k: int32 [batch], cached tokens of each sequence.
        page_table: int32 [batch, max_blocks], the blocks of each sequence in order.
        k_new, v_new: float8_e4m3fn [Tq, Hkv, D] in the order of cu_seqlens_q; keys with the cache's
            k_mean taken off and multiplied with its k_smooth, as cached ones are.
        k_new_scale, v_new_scale: float32 [Tq, Hkv].
        softmax_scale: factor of the scores; None is D ** -0.5.
        causal: mask keys right of the diagonal.
        window_size: how many keys left and right of the diagonal are seen; -1 is all.
        softcap: scores become softcap * tanh(score / softcap); 0 leaves them.
        sinks: None or float32 [Hq], a score per head that takes part in the softmax and has no
            value.
        out_dtype: bfloat16, float16 or float32.
        num_splits: into how many parts the keys are split on a GPU; 0 chooses.
        allow_fp16_scores: on sm_90a, multiply queries and keys and compute the softmax in FP16
            unless k_new or softcap is given: FP8 keys could overflow, INT4 ones cannot. Scores and
            LSE are then off by up to (D / 32 + 5) * 2**-11 of sum |q_d k_d|, the LSE by 2**-7 more.
        return_lse: also return the LSE.

    Returns:
        out: out_dtype [Tq, Hq, D]; zero for a query that sees no key.
        lse: float32 [Hq, Tq], natural logarithm of the sum of the exponentials of the scores, sinks
            included; -inf for a query that sees nothing.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device or a value does not fit. On a GPU the contents of the index
            tensors are not looked at.
        NotImplementedError: no kernel serves the device.
    """
    scale = q8.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    key_mean = kv.k_mean
    if key_mean is not None and kv.k_smooth is not None:
        key_mean = key_mean * kv.k_smooth
    try:
        out, lse = torch.ops.wlib.attention_prefill(
            q8,
            q_scale,
            kv.k,
            kv.v,
            kv.k_scale,
            kv.v_scale,
            page_table,
            seqused_k,
            cu_seqlens_q,
            max_seqlen_q=max_seqlen_q,
            k_new=k_new,
            v_new=v_new,
            k_new_scale=k_new_scale,
            v_new_scale=v_new_scale,
            key_mean=key_mean,
            sinks=sinks,
            softmax_scale=scale,
            causal=causal,
            window_left=window_size[0],
            window_right=window_size[1],
            softcap=softcap,
            num_splits=num_splits,
            allow_fp16_scores=allow_fp16_scores,
            out_dtype=out_dtype,
        )
    except ValueError as error:
        raise typed_error(error) from None
    return (out, lse) if return_lse else out


def merge_attention_states(
    o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention over two disjoint sets of keys from the attention over each.

    Args:
        o1, o2: floating point [T, H, D], outputs over each set.
        lse1, lse2: float32 [H, T], natural logarithms, -inf where a set is empty.

    Returns:
        out: [T, H, D] in the dtype of o1, computed in float32.
        lse: float32 [H, T].

    Raises:
        ValueError: the shapes do not fit each other.
    """
    where = "wlib.merge_attention_states"
    if o1.dim() != 3:
        refuse(where, "o1 of shape [T, H, D]", list(o1.shape), "o1")
    check_shape(where, "o2", o2, o1.shape)
    for name, lse in (("lse1", lse1), ("lse2", lse2)):
        check_shape(where, name, lse, (o1.shape[1], o1.shape[0]))
    lse = torch.logaddexp(lse1, lse2)
    none = lse == -math.inf
    safe = lse.masked_fill(none, 0)
    w1, w2 = ((part - safe).exp().T[..., None] for part in (lse1, lse2))
    return (w1 * o1.float() + w2 * o2.float()).to(o1.dtype), lse
