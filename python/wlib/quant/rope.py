"""RoPE-aware scaling of keys, so that few channels hold their outliers (FireQ, arXiv 2505.20839).

Rotary embeddings turn the channels i and i + D/2 of a head into each other. A factor the two share
commutes with the rotation and disappears into the projections of keys and queries. What is left,
outlier channels of the rotated keys, takes a factor per channel while attention runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import refuse

_NAME = "wlib.quant.smooth_keys"


def key_factors(
    keys: Tensor, rotate: Callable[[Tensor], Tensor], top_k: int = 3
) -> tuple[Tensor, Tensor]:
    """Factors that even out the channels of keys.

    The top_k channels of each head with the largest rotated values, and their partners, take the
    second factor, all other pairs the first; each brings a pair's largest norm, or a channel's
    largest value, to the mean of the head's pairs.

    Args:
        keys: floating point [..., T, Hkv, D] as projected, before RoPE.
        rotate: applies RoPE to a tensor shaped like keys; partners are i and i + D/2.
        top_k: outlier channels per head, 0 to D.

    Returns:
        before: float32 [Hkv, D] to multiply keys with before RoPE, equal within a pair.
        after: float32 [Hkv, D] to multiply rotated keys with.

    Raises:
        ValueError: keys are not [..., T, Hkv, D] with an even D, or top_k is out of range.
    """
    if keys.dim() < 3 or keys.shape[-1] % 2 or keys.numel() == 0:
        refuse(_NAME, "keys of shape [..., T, Hkv, D], D even", list(keys.shape), "keys")
    heads, dim = keys.shape[-2:]
    if not 0 <= top_k <= dim:
        refuse(_NAME, f"top_k in 0..{dim}", top_k, "top_k")
    pairs = keys.float().reshape(-1, heads, 2, dim // 2)
    norms = pairs.norm(dim=2).amax(dim=0)  # [Hkv, D/2], which RoPE leaves alone
    largest = rotate(keys).float().reshape(-1, heads, dim).abs().amax(dim=0)  # [Hkv, D]
    outlier = torch.zeros_like(norms, dtype=torch.bool)
    outlier.scatter_(1, largest.topk(top_k, dim=1).indices % (dim // 2), True)
    level = norms.mean(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    before = torch.where(outlier | (norms < tiny), 1.0, level / norms).repeat(1, 2)
    apart = outlier.repeat(1, 2) & (largest >= tiny)
    return before, torch.where(apart, level / largest, 1.0)


def smooth_keys(
    q_proj: nn.Linear,
    k_proj: nn.Linear,
    keys: Tensor,
    rotate: Callable[[Tensor], Tensor],
    top_k: int = 3,
) -> Tensor:
    """Fold the factors before RoPE into the projections, in place, and return those after it.

    Attention scores stay what they were if rotated keys are multiplied with the result and rotated
    queries divided by it; a KV head serves Hq/Hkv consecutive query heads. Nothing but RoPE may
    come between the projections and the scores: no norm of queries or keys.

    Args:
        q_proj: projection to queries, Hq * D outputs.
        k_proj: projection to keys, Hkv * D outputs.
        keys: outputs of k_proj on calibration data, [..., T, Hkv, D].
        rotate: applies RoPE to a tensor shaped like keys; partners are i and i + D/2.
        top_k: outlier channels per KV head.

    Returns:
        k_smooth: float32 [Hkv, D].

    Raises:
        ValueError: the shapes do not fit each other, or as `key_factors`.
    """
    before, after = key_factors(keys, rotate, top_k)
    heads, dim = before.shape
    if k_proj.out_features != heads * dim:
        refuse(_NAME, f"k_proj with {heads} * {dim} outputs", k_proj.out_features, "k_proj")
    if q_proj.out_features % (heads * dim):
        expected = f"q_proj with a multiple of {heads} * {dim} outputs"
        refuse(_NAME, expected, q_proj.out_features, "q_proj")
    queries = before.repeat_interleave(q_proj.out_features // (heads * dim), dim=0)
    _multiply_outputs(k_proj, before.flatten())
    _multiply_outputs(q_proj, 1 / queries.flatten())
    return after


def _multiply_outputs(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.data.copy_(linear.weight.data * factors[:, None])
    if linear.bias is not None:
        linear.bias.data.copy_(linear.bias.data * factors)
