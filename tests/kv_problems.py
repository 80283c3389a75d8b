"""Problems for the kernels of the INT4 cache in the simulator; the CPU's ops are the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

import wlib  # noqa: F401  registers the ops
from quantize_problems import as_numpy, as_torch, same_values
from sim_numbers import Array, to_bf16
from sim_problems import probe


def draw(rng: np.random.Generator, dtype: Any, *shape: int) -> Array:
    """Normal numbers; uint16 holds the bits of bfloat16."""
    values = rng.standard_normal(shape).astype(np.float32)
    return to_bf16(values) if dtype is np.uint16 else values.astype(dtype)


@dataclasses.dataclass
class AppendCase:
    """Tokens k, v [T, heads, head_dim] for slots [T] of a cache that other tokens have filled."""

    k: Array
    v: Array
    slots: Array
    blocks: int
    options: dict[str, Any]
    mean: Array | None = None
    smooth: Array | None = None
    tokens_per_cta: int = 1
    heads_per_cta: int = 1
    beyond: int = 0  # so many tokens in front have slots beyond the cache, which a GPU leaves alone

    def cache(self) -> list[Array]:
        """Codes and scales of keys and values as they are before."""
        rng = np.random.default_rng(self.blocks)
        heads, dim = self.k.shape[1:]
        codes, scales = (self.blocks, heads, dim * 32), (self.blocks, heads, 64)
        return [
            *(rng.integers(0, 256, codes, np.uint8) for _ in range(2)),
            *(rng.standard_normal(scales).astype(np.float32) for _ in range(2)),
        ]

    def expected(self) -> list[Array]:
        k, v, k_scale, v_scale = map(torch.from_numpy, self.cache())
        mean, smooth = (
            None if a is None else torch.from_numpy(a) for a in (self.mean, self.smooth)
        )
        given = (array[self.beyond :] for array in (self.k, self.v, self.slots))
        tokens = map(as_torch, given)
        torch.ops.wlib.append_kv_int4(*tokens, k, v, k_scale, v_scale, k_mean=mean, k_smooth=smooth)
        return [as_numpy(tensor) for tensor in (k, v, k_scale, v_scale)]

    def simulate(self) -> tuple[list[Array], list[Any]]:
        cache = self.cache()
        report = probe.append_kv_int4(
            self.k,
            self.v,
            self.slots,
            *cache,
            mean=self.mean,
            smooth=self.smooth,
            tokens_per_cta=self.tokens_per_cta,
            heads_per_cta=self.heads_per_cta,
            options=probe.Options(**self.options),
        )
        return cache, report.findings

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the cache is the reference's, bit for bit."""
        got, findings = self.simulate()
        # Codes are no E4M3 here, so that every byte counts.
        return findings, all(
            np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
            for a, b in zip(got, self.expected(), strict=True)
        )


@dataclasses.dataclass
class QueriesCase:
    """Queries [T, heads, head_dim], with factors and angles if there are any."""

    q: Array
    options: dict[str, Any]
    smooth: Array | None = None
    cos: Array | None = None
    sin: Array | None = None

    def expected(self) -> list[Array]:
        names = ("smooth", "cos", "sin")
        given = {name: getattr(self, name) for name in names}
        smooth, cos, sin = (
            None if a is None else torch.from_numpy(a) for a in (given[name] for name in names)
        )
        out = torch.ops.wlib.quantize_q_fp8(as_torch(self.q), k_smooth=smooth, cos=cos, sin=sin)
        return [as_numpy(tensor) for tensor in out]

    def simulate(self) -> tuple[list[Array], list[Any]]:
        out = [np.full(self.q.shape, 0x55, np.uint8), np.full(self.q.shape[:2], np.nan, np.float32)]
        report = probe.quantize_q_fp8(
            self.q,
            *out,
            smooth=self.smooth,
            cos=self.cos,
            sin=self.sin,
            options=probe.Options(**self.options),
        )
        return out, report.findings

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the results are the reference's, bit for bit."""
        got, findings = self.simulate()
        return findings, all(map(same_values, got, self.expected()))


def slots_of(*runs: tuple[int, int]) -> Array:
    """Slots of runs (first slot, count), one after the other."""
    return np.concatenate([np.arange(first, first + count) for first, count in runs])


def append_case(
    rng: np.random.Generator,
    slots: Array,
    options: dict[str, Any],
    *,
    heads: int = 2,
    dim: int = 64,
    dtype: Any = np.uint16,
    smooth: bool = False,
    **launch: int,
) -> AppendCase:
    """Random tokens for `slots`; the rows of k lie apart."""
    tokens = len(slots)
    k = draw(rng, dtype, tokens, heads + 1, dim)[:, :heads]
    factors: dict[str, Any] = {}
    if smooth:
        factors["mean"] = draw(rng, np.float32, heads, dim)
        factors["smooth"] = np.exp(draw(rng, np.float32, heads, dim))
    blocks = int(slots.max(initial=0)) // 64 + 2
    v = draw(rng, dtype, tokens, heads, dim)
    return AppendCase(k, v, slots.astype(np.int64), blocks, options, **factors, **launch)


def case_beyond(rng: np.random.Generator, options: dict[str, Any]) -> AppendCase:
    """Four tokens with slots beyond the cache, then four with slots in it."""
    case = append_case(rng, slots_of((62, 8)), options)
    case.slots[:4] = case.blocks * 64 + np.arange(4)
    case.beyond = 4
    return case


def queries_case(
    rng: np.random.Generator,
    options: dict[str, Any],
    *,
    tokens: int = 7,
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 64,
    dtype: Any = np.uint16,
    smooth: bool = True,
    rope: bool = True,
) -> QueriesCase:
    """Random queries; the rows of q lie apart."""
    case = QueriesCase(draw(rng, dtype, tokens, heads + 1, dim)[:, 1:], options)
    if smooth:
        case.smooth = np.exp(draw(rng, np.float32, kv_heads, dim))
    if rope:
        angles = rng.uniform(0, 7, (tokens, dim // 2))
        case.cos, case.sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    return case
