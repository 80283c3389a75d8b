"""Judges attention in FP8 against float64, on the problems of test_prefill.py."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from test_prefill import Sequences
from wlib.reference import prefill as reference


class Exact(NamedTuple):
    """The float64 answer of all sequences, see `wlib.reference.prefill.Attention`."""

    out: Tensor
    lse: Tensor
    magnitude: Tensor
    score: Tensor


def dequantized_queries(s: Sequences) -> Tensor:
    q = s.q8.double() * s.q_scale.double()[..., None]
    if s.kv.k_smooth is not None:
        q = q * s.kv.k_smooth.double().repeat_interleave(q.shape[1] // s.kv.num_kv_heads, 0)
    return q


def exact(s: Sequences, **options: Any) -> Exact:
    q = dequantized_queries(s)
    scale = options.get("softmax_scale") or s.q8.shape[2] ** -0.5
    names = ("causal", "window_size", "softcap", "sinks")
    passed = {name: options[name] for name in names if name in options}
    starts = s.arguments["cu_seqlens_q"].tolist()
    parts = [
        reference.attention(q[a:b], s.keys[i], s.values[i], softmax_scale=scale, **passed)
        for i, (a, b) in enumerate(itertools.pairwise(starts))
    ]
    return Exact(
        torch.cat([part.out for part in parts]),
        torch.cat([part.lse for part in parts], 1),
        torch.cat([part.magnitude for part in parts]),
        torch.cat([part.score for part in parts]),
    )


def takes_fp16_scores(s: Sequences, **options: Any) -> bool:
    exact_only = s.arguments.get("k_new") is not None or options.get("softcap", 0) > 0
    return bool(options.get("allow_fp16_scores")) and not exact_only


def check_result(s: Sequences, out: Tensor, lse: Tensor, **options: Any) -> None:
    """Against float64, every output, blocks of 16 tokens, and all together.

    A probability is off by half a step of E4M3: 2^-4 of itself or, of 256, 2^-10 where it is
    subnormal. The errors are independent, so that they add up to less; the bounds on a block and on
    all of the output say so.

    Of FP16 scores, every wgmma of 32 channels rounds the sum so far, the key's scale and what it is
    multiplied with are rounded, the difference from the largest score, its factor and the exponent:
    2^-11 each. 2^x within 2^-9.9, its sum, and the exponent's own size add less than 2^-7.
    """
    want = exact(s, **options)
    score_error = torch.zeros_like(want.score)
    if takes_fp16_scores(s, **options):
        score_error = (s.q8.shape[2] // 32 + 5) * 2.0**-11 * want.score + 2.0**-7
    none = want.lse == -math.inf
    assert (lse[none] == -math.inf).all()
    assert (out[none.T] == 0).all()
    # FP32 sums of D products and 2^x within 2 units in the last place.
    bound = (s.q8.shape[2] + 16) * 2.0**-23 * (1 + want.score.T + want.lse.abs())
    assert ((lse - want.lse).abs() <= bound + score_error.T)[~none].all()
    error = (out.double() - want.out).abs()
    largest = max([0.0, *(float(v.abs().max()) for v in s.values if len(v))])
    keys = max(len(v) for v in s.values)
    relative = 2.0**-4 + 2.0**-12 + 2 * score_error[..., None]  # of a probability and of their sum
    assert (error <= relative * want.magnitude + keys * 2.0**-18 * largest).all()
    for block in range(0, len(out), 16):
        part = slice(block, block + 16)
        assert error[part].max() <= 0.06 * want.out[part].abs().max()
    assert error.norm() <= 0.04 * want.out.norm()
    if want.out.norm() > 0:
        cosine = (out.double() * want.out).sum() / (out.double().norm() * want.out.norm())
        assert cosine >= 0.999
