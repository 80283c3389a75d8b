"""Float64 reference of attention over dequantised keys and values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Attention(NamedTuple):
    """Exact attention, and what the errors of float32 arithmetic are measured on.

    out [Tq, H, D], lse [H, Tq], magnitude [Tq, H, D] = sum_j p_j |v_j|, and score [Tq, H], the
    largest sum_d |q_d k_d| of a row's scores; float64.
    """

    out: Tensor
    lse: Tensor
    magnitude: Tensor
    score: Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Attention:
    """Softmax attention of one sequence in float64.

    Args:
        q: [Tq, H, D]; k, v: [Tk, Hkv, D], H a multiple of Hkv, already dequantised.
        softmax_scale, causal, window_size, softcap, sinks: as `wlib.attention_prefill`.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * softmax_scale
    sizes = torch.einsum("qhd,khd->hqk", q.double().abs(), keys.abs()) * abs(softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    diagonal = torch.arange(len(q))[:, None] + len(k) - len(q)
    key = torch.arange(len(k))
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    if causal:
        hidden |= key > diagonal
    if window_size[0] >= 0:
        hidden |= key < diagonal - window_size[0]
    if window_size[1] >= 0:
        hidden |= key > diagonal + window_size[1]
    scores = scores.masked_fill(hidden, -math.inf)
    everything = scores
    if sinks is not None:
        everything = torch.cat((scores, sinks.double()[:, None, None].expand(-1, len(q), 1)), 2)
    lse = torch.logsumexp(everything, dim=2) if everything.shape[2] else scores.sum(2) - math.inf
    p = (scores - lse.masked_fill(lse == -math.inf, 0)[..., None]).exp()
    return Attention(
        torch.einsum("hqk,khd->qhd", p, values),
        lse,
        torch.einsum("hqk,khd->qhd", p, values.abs()),
        sizes.masked_fill(hidden, 0).amax(dim=2).T if len(k) else q.new_zeros(q.shape[:2]).double(),
    )
