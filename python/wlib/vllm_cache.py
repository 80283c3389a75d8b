"""vLLM's `int4_per_token_head` cache of keys and values, read where it lies.

docs/design/vllm_cache.md says what of vLLM was read; `include/wlib/layout/int4_tokens.h` states the
layout for the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from .errors import check_device, check_dtype, check_shape, refuse

_CACHE = "wlib.VllmInt4Cache"
_FROM = "wlib.VllmInt4Cache.from_vllm"
_APPEND = "wlib.VllmInt4Cache.append"
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_HEAD_DIMS = (64, 128, 256)
_SCALE_BYTES = 4
_SIGN_SEED = 0x9E3779B9
_SMALLEST_SCALE = 1e-6
_ZERO_BITS = 15


@dataclass(eq=False)
class VllmInt4Cache:
    """A paged cache with a row of codes 0..15, a scale and a zero point per token and head.

    Keys and values are stored rotated, as vLLM stores them: H D x with D the signs of
    `rotation_signs` and H the Walsh-Hadamard matrix of ones. Give `attention_prefill` queries that
    went through `rotate_queries`, and its output to `restore`.

    Attributes:
        k, v: uint8 [num_blocks, block_size, num_kv_heads, head_dim / 2], channel 2i in the low and
            2i + 1 in the high half of byte i; any strides but that of the last dimension, 1.
        k_scale, v_scale: float32 [num_blocks, block_size, num_kv_heads], any strides. The low four
            bits are the row's zero point: x = (code - zero) * scale without those bits.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape does not fit, or head_dim is none of 64, 128 and 256.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor
    k_mean: ClassVar[None] = None  # a zero point per row in its place
    k_smooth: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name, tensor in (("k", self.k), ("v", self.v)):
            check_dtype(_CACHE, name, tensor, torch.uint8)
        for name, tensor in (("k_scale", self.k_scale), ("v_scale", self.v_scale)):
            check_dtype(_CACHE, name, tensor, torch.float32)
        if self.k.dim() != 4 or self.k.shape[3] * 2 not in _HEAD_DIMS or 0 in self.k.shape[1:3]:
            expected = "k of shape [num_blocks, block_size, num_kv_heads, head_dim / 2] with "
            expected += "head_dim of 64, 128 or 256"
            refuse(_CACHE, expected, list(self.k.shape), "k")
        check_shape(_CACHE, "v", self.v, self.k.shape)
        for name, tensor in (("k_scale", self.k_scale), ("v_scale", self.v_scale)):
            check_shape(_CACHE, name, tensor, self.k.shape[:3])

    @classmethod
    def from_vllm(cls, kv_cache: Tensor) -> VllmInt4Cache:
        """Views of a layer's cache as vLLM allocates it; nothing is copied.

        Args:
            kv_cache: one byte per element, scales behind their codes, in one of two shapes:
                [num_blocks, 2, block_size, num_kv_heads, head_dim / 2 + 4], keys then values, or
                [num_blocks, num_kv_heads, block_size, head_dim + 8], a key before its value. Rows
                may lie anywhere at multiples of four bytes.

        Raises:
            TypeError: a dtype other than uint8 or int8.
            ValueError: another shape, or rows that are not aligned to four bytes.
        """
        check_dtype(_FROM, "kv_cache", kv_cache, torch.uint8, torch.int8)
        if kv_cache.dim() == 5 and kv_cache.shape[1] == 2:
            halves = kv_cache.unbind(1)
        elif kv_cache.dim() == 4 and kv_cache.shape[3] % 2 == 0:
            halves = kv_cache.transpose(1, 2).chunk(2, dim=3)
        else:
            expected = "kv_cache of shape [num_blocks, 2, block_size, num_kv_heads, head_dim / 2 "
            expected += "+ 4] or [num_blocks, num_kv_heads, block_size, head_dim + 8]"
            refuse(_FROM, expected, list(kv_cache.shape), "kv_cache")
        *lead, last = kv_cache.stride()
        if last != 1 or any(n % _SCALE_BYTES for n in (*lead, kv_cache.data_ptr())):
            refuse(_FROM, "rows at multiples of 4 bytes", f"strides {[*lead, last]}", "kv_cache")
        codes = [half[..., :-_SCALE_BYTES].view(torch.uint8) for half in halves]
        scales = [half[..., -_SCALE_BYTES:].view(torch.float32)[..., 0] for half in halves]
        return cls(codes[0], codes[1], scales[0], scales[1])

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.k.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.k.shape[3] * 2

    def rotate_queries(self, q: Tensor) -> Tensor:
        """H D q / head_dim, whose products with rotated keys are those of q with the keys.

        Args:
            q: bfloat16, float16 or float32 [..., head_dim], after RoPE.

        Returns:
            float32, for `quantize_q_fp8`.
        """
        return _hadamard(q.float() * rotation_signs(self.head_dim, q.device)) / self.head_dim

    def restore(self, out: Tensor) -> Tensor:
        """The output for unrotated values: D H out / head_dim, [..., head_dim] in out's dtype."""
        x = _hadamard(out.float()) * rotation_signs(self.head_dim, out.device)
        return (x / self.head_dim).to(out.dtype)

    def append(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Rotate and quantise tokens into slots, by torch on any device; vLLM's own writer is
        what an engine uses.

        scale = (max - min) / 15, at least 1e-6, zero = -min / scale, code = x / scale + zero, both
        rounded to the nearest integer, halves up, and kept in 0..15. Waits for the device.

        Args:
            k, v: bfloat16, float16 or float32 [T, num_kv_heads, head_dim]; keys after RoPE.
            slot_mapping: int64 [T], block * block_size + offset, no slot twice; a token with a
                negative slot is skipped.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, a device or a slot does not fit; nothing was written.
        """
        check_dtype(_APPEND, "k", k, *_FLOATS)
        check_dtype(_APPEND, "v", v, k.dtype)
        check_dtype(_APPEND, "slot_mapping", slot_mapping, torch.int64)
        if k.dim() != 3 or k.shape[1:] != (self.num_kv_heads, self.head_dim):
            expected = f"k of shape [T, {self.num_kv_heads}, {self.head_dim}]"
            refuse(_APPEND, expected, list(k.shape), "k")
        check_shape(_APPEND, "v", v, k.shape)
        check_shape(_APPEND, "slot_mapping", slot_mapping, k.shape[:1])
        for name, tensor in (("k", k), ("v", v), ("slot_mapping", slot_mapping)):
            check_device(_APPEND, name, tensor, self.k.device)
        slots = self.k.shape[0] * self.block_size
        if bool((slot_mapping >= slots).any()):
            refuse(_APPEND, f"slots below {slots}", int(slot_mapping.max()), "slot_mapping")
        own = slot_mapping >= 0
        at = slot_mapping[own] // self.block_size, slot_mapping[own] % self.block_size
        signs = rotation_signs(self.head_dim, k.device)
        for x, codes, scales in ((k, self.k, self.k_scale), (v, self.v, self.v_scale)):
            rotated = _hadamard(x[own].float() * signs).to(x.dtype).float()
            codes[at], scales[at] = _quantize(rotated)

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """Keys and values, float32 [num_blocks * block_size, num_kv_heads, head_dim], in slot
        order and rotated, as attention reads them; `restore` undoes the rotation."""
        return _dequantize(self.k, self.k_scale), _dequantize(self.v, self.v_scale)


@cache
def _signs(head_dim: int) -> Tensor:
    rng = torch.Generator().manual_seed(_SIGN_SEED)
    return 2 * torch.bernoulli(torch.full((head_dim,), 0.5), generator=rng) - 1


def rotation_signs(head_dim: int, device: torch.device | None = None) -> Tensor:
    """The signs D of vLLM's rotation, float32 [head_dim] of 1 and -1."""
    return _signs(head_dim).to(device)


def _hadamard(x: Tensor) -> Tensor:
    """x times the Walsh-Hadamard matrix of ones and minus ones, along the last dimension."""
    for step in (2**i for i in range(x.shape[-1].bit_length() - 1)):
        a, b = x.unflatten(-1, (-1, 2, step)).unbind(-2)
        x = torch.stack((a + b, a - b), dim=-2).flatten(-3)
    return x


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of two channels a byte, and scales with their zero points in the low bits."""
    low, high = x.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp_min(_SMALLEST_SCALE)
    zero = (-low / scale + 0.5).trunc().clamp(0, 15)
    inverse = 1 / scale
    codes = (x * inverse[..., None] + zero[..., None] + 0.5).trunc().clamp(0, 15).to(torch.uint8)
    bits = scale.view(torch.int32) & ~_ZERO_BITS | zero.to(torch.int32)
    return codes[..., ::2] | codes[..., 1::2] << 4, bits.view(torch.float32)


def _dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    bits = scale.contiguous().view(torch.int32)
    zero, scale = bits & _ZERO_BITS, (bits & ~_ZERO_BITS).view(torch.float32)
    both = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).float()
    return ((both - zero[..., None]) * scale[..., None]).flatten(0, 1)
