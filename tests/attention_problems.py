"""Calls of the attention kernel in the simulator, with the problems of the CPU's tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import wlib
from attention_calls import Call
from test_prefill import Sequences


class Result(NamedTuple):
    out: Tensor  # as the call's out_dtype
    lse: Tensor
    findings: list[Any]


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.float8_e4m3fn:
        tensor = tensor.view(torch.uint8)
    return np.ascontiguousarray(tensor.numpy())


def call(
    s: Sequences,
    *,
    splits: int = 1,
    ctas: int = 2,
    simulation: dict[str, Any] | None = None,
    **options: Any,
) -> Call:
    """What the kernel gets for the arguments of wlib.attention_prefill."""
    given = s.arguments | options
    mean, smooth = s.kv.k_mean, s.kv.k_smooth
    tensors = {
        "q": s.q8,
        "k_cache": s.kv.k,
        "v_cache": s.kv.v,
        "k_scale": s.kv.k_scale,
        "v_scale": s.kv.v_scale,
        "key_mean": mean if mean is None or smooth is None else mean * smooth,
    }
    names = ("q_scale", "page_table", "seqused_k", "cu_seqlens_q", "k_new", "v_new")
    for name in (*names, "k_new_scale", "v_new_scale", "sinks"):
        tensors[name] = given.get(name)
    window = given.get("window_size", (-1, -1))
    numbers = {
        "max_seqlen_q": given["max_seqlen_q"],
        "softmax_scale": given.get("softmax_scale") or s.q8.shape[2] ** -0.5,
        "softcap": given.get("softcap", 0.0),
        "causal": given.get("causal", True),
        "allow_fp16_scores": given.get("allow_fp16_scores", False),
        "window_left": window[0],
        "window_right": window[1],
    }
    arrays = {name: None if t is None else as_numpy(t) for name, t in tensors.items()}
    if isinstance(s.kv, wlib.VllmInt4Cache):  # its rows stay where they are
        for name in ("k", "v"):
            arrays[f"{name}_cache"] = getattr(s.kv, name).numpy()
            arrays[f"{name}_scale"] = getattr(s.kv, f"{name}_scale").numpy()
    out_type = {torch.float32: np.float32, torch.float16: np.float16}.get(
        given["out_dtype"], np.uint16
    )
    return Call(arrays, numbers, out_type, splits, ctas, simulation or {})


def attention(s: Sequences, **options: Any) -> Result:
    """As wlib.attention_prefill, by the kernel in the simulator."""
    out, lse, findings = call(s, **options).run()
    result = torch.from_numpy(out)
    if out.dtype == np.uint16:
        result = result.view(torch.bfloat16)
    return Result(result, torch.from_numpy(lse), findings)
