"""Calls of the attention kernel in the simulator on NumPy arrays; without torch, so that a planted
bug's process starts quickly."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from sim_numbers import Array
from sim_problems import probe


class Result(NamedTuple):
    out: Array  # float32, float16, or uint16 with the bits of BF16
    lse: Array
    findings: list[Any]


@dataclasses.dataclass
class Call:
    """Arguments by the names of wlib.attention_prefill, FP8 as uint8, and how they are run."""

    arrays: dict[str, Array | None]
    numbers: dict[str, Any]
    out_type: type[np.generic]
    splits: int
    ctas: int
    simulation: dict[str, Any]

    def run(self) -> Result:
        q = self.arrays["q"]
        assert q is not None
        tokens, heads, dim = q.shape
        bits16 = self.out_type is np.uint16
        out = np.full(q.shape, 0x7FFF if bits16 else np.nan, self.out_type)
        lse = np.full((heads, tokens), np.nan, np.float32)
        parts = np.full(self.splits * tokens * heads * (dim + 1), np.nan, np.float32)
        report = probe.attention(
            self.arrays,
            self.numbers,
            out,
            lse,
            parts if self.splits > 1 else None,
            splits=self.splits,
            ctas=self.ctas,
            simulation=probe.Options(**self.simulation),
        )
        return Result(out, lse, report.findings)

    def items(self) -> list[tuple[int, int, int, int]]:
        """(sequence, first query, rows, steps of 64 keys) of each item of work, in order."""
        q = self.arrays["q"]
        assert q is not None
        out, lse = np.empty(q.shape, self.out_type), np.empty((q.shape[1], len(q)), np.float32)
        items: list[tuple[int, int, int, int]] = probe.attention_items(
            self.arrays, self.numbers, out, lse, splits=self.splits
        )
        return items


@dataclasses.dataclass
class AttentionCase:
    """A call, judged by what the unchanged kernel gives."""

    call: Call
    out: Array
    lse: Array

    @classmethod
    def of(cls, call: Call) -> AttentionCase:
        out, lse, findings = call.run()
        assert findings == []
        return cls(call, out, lse)

    def run(self) -> tuple[list[Any], bool]:
        out, lse, findings = self.call.run()
        same = np.array_equal(out, self.out) and np.array_equal(lse, self.lse)
        return findings, same
