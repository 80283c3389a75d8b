"""Float64 reference of attention over dequantised keys and values."""

from __future__ import annotations

import itertools
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


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v_codes: Tensor,
    v_scale: Tensor,
    *,
    cached: int,
    softmax_scale: float,
    causal: bool = True,
    promote: bool = True,
    fraction_bits: int | None = None,
) -> Tensor:
    """What the GPU kernel computes, step by step, for one sequence; float32 [Tq, H, D].

    Steps of 64 keys, the cached ones first. The running maximum of a row is that of the steps so
    far; probabilities times 256 and the values' scales, relative to the largest of the step, are
    rounded to E4M3.

    Args:
        q: [Tq, H, D]; k: [Tk, Hkv, D], already dequantised.
        v_codes: [Tk, Hkv, D], v_scale: [Tk, Hkv]; a value is their product.
        cached: how many of the keys are cached.
        softmax_scale, causal: as `wlib.attention_prefill`.
        promote: add every step's products to the output in float32; otherwise they are added to it
            in the tensor core's accumulator.
        fraction_bits: bits behind the largest addend that this accumulator keeps; None is all.
    """
    group = q.shape[1] // k.shape[1]
    keys, codes = (t.double().repeat_interleave(group, dim=1) for t in (k, v_codes))
    scale = v_scale.float().repeat_interleave(group, dim=1).T  # [H, Tk]
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * (softmax_scale * math.log2(math.e))
    if causal:
        diagonal = torch.arange(len(q))[:, None] + len(k) - len(q)
        scores = scores.masked_fill(torch.arange(len(k)) > diagonal, -math.inf)
    heads, rows = scores.shape[:2]
    largest = torch.full((heads, rows), -math.inf, dtype=torch.float64)
    total = torch.zeros(heads, rows, dtype=torch.float64)
    unit = torch.ones(heads)
    out = torch.zeros(heads, rows, q.shape[2])

    def multiply(start: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """start [H, Tq, D] + weights [H, Tq, k] values [k, H, D], as one wgmma adds them up."""
        if fraction_bits is None:
            return start + torch.einsum("hqk,khd->hqd", weights, values)
        terms = weights[..., None].double() * values.transpose(0, 1)[:, None]
        terms = torch.cat((terms, start[:, :, None].double()), 2)
        largest = terms.abs().amax(2, keepdim=True).clamp_min(1e-30)
        step = torch.exp2(torch.floor(torch.log2(largest)) - fraction_bits)
        return ((terms / step).trunc() * step).sum(2).float()

    bounds = sorted({*range(0, cached, 64), *range(cached, len(k), 64), len(k)})
    for first, end in itertools.pairwise(bounds):
        s = scores[:, :, first:end]
        top = torch.maximum(largest, s.amax(2))
        base = top.masked_fill(top == -math.inf, 0)
        p = torch.exp2(s - base[..., None] + 8).float()
        rescale = torch.exp2(largest - base)
        total = total * rescale + p.double().sum(2)
        largest = top
        of_step = scale[:, first:end].abs().amax(1)
        of_step = torch.where(of_step == 0, unit, of_step)
        factor = rescale.float() * (unit / of_step)[:, None]
        unit = of_step
        weights = p * (scale[:, first:end] / unit[:, None])[:, None]
        weights = weights.to(torch.float8_e4m3fn).float()
        out = factor[..., None] * out
        part = torch.zeros_like(out) if promote else out
        for begin in range(first, end, 32):
            stop = min(begin + 32, end)
            own = weights[:, :, begin - first : stop - first]
            part = multiply(part, own, codes[begin:stop].float())
        out = out + part if promote else part
    result = out * (unit[:, None] / total.clamp_min(1e-300)).float()[..., None]
    return result.transpose(0, 1)
