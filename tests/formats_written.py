"""The checkpoint formats written out nibble by nibble, sharing no code with what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Problem:
    """A quantised weight: q int [N, K] -8..7, scale float [N, K/G], zero int [N, K/G] or None.

    g_idx int [K] is the group of each column.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor | None
    g_idx: Tensor

    @property
    def truth(self) -> Tensor:
        """The weight, float64 [N, K]: exact but for one rounding."""
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero
        return (self.q - zero.double()[:, self.g_idx]) * self.scale.double()[:, self.g_idx]


def problem(
    n: int = 24,
    k: int = 256,
    group_size: int = 64,
    *,
    zero: bool = False,
    act_order: bool = False,
    scale: torch.dtype = torch.float16,
) -> Problem:
    """A random one with scales around 1/100; zero points of every value -8..7."""
    groups = k // group_size
    g_idx = torch.arange(k) // group_size
    return Problem(
        q=torch.randint(-8, 8, (n, k)),
        scale=((torch.rand(n, groups) + 0.5) / 100).to(scale),
        zero=(torch.arange(n * groups).view(n, groups) % 16 - 8) if zero else None,
        g_idx=g_idx[torch.randperm(k)] if act_order else g_idx,
    )


def words(values: list[list[int]], order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """int32 [R, ceil(C/8)] of 0..15 [R][C]: nibble i of a word holds column order[i] of its 8."""
    rows = []
    for row in values:
        line = []
        for start in range(0, len(row), 8):
            word = 0
            for nibble, column in enumerate(order):
                if start + column < len(row):
                    word |= row[start + column] << 4 * nibble
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(line)
    return torch.tensor(rows, dtype=torch.int32)


def zeros_of(problem: Problem, offset: int) -> list[list[int]]:
    """Stored zero points [N][K/G], 0..15."""
    zero = torch.zeros(problem.scale.shape, dtype=int) if problem.zero is None else problem.zero
    return [[(z + offset) % 16 for z in row] for row in zero.tolist()]


def transposed(rows: list[list[int]]) -> list[list[int]]:
    return [list(row) for row in zip(*rows, strict=True)]


def gptq(problem: Problem, version: int = 1) -> dict[str, Tensor]:
    q = (problem.q + 8).tolist()
    return {
        "qweight": words(q).T.contiguous(),
        "qzeros": words(transposed(zeros_of(problem, 7 if version == 1 else 8))),
        "scales": problem.scale.T.contiguous(),
        "g_idx": problem.g_idx.int(),
    }


def awq(problem: Problem) -> dict[str, Tensor]:
    q = (problem.q + 8).tolist()
    return {
        "qweight": words(transposed(q), AWQ_COLUMN_OF_NIBBLE),
        "qzeros": words(transposed(zeros_of(problem, 8)), AWQ_COLUMN_OF_NIBBLE),
        "scales": problem.scale.T.contiguous(),
    }


def compressed_tensors(problem: Problem) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words((problem.q + 8).tolist()),
        "weight_scale": problem.scale,
        "weight_shape": torch.tensor(problem.q.shape),
    }
    if problem.zero is not None:
        zeros = words(transposed(zeros_of(problem, 8))).T
        tensors["weight_zero_point"] = zeros.contiguous()
    if (problem.g_idx.diff() < 0).any():
        tensors["weight_g_idx"] = problem.g_idx.int()
    return tensors


def fireq(
    problem: Problem, factor: float | None = None, as_bytes: bool = False
) -> dict[str, Tensor]:
    packed = words((problem.q % 16).tolist())
    tensors = {
        "weight": packed.view(torch.int8) if as_bytes else packed,
        "weight_scale": problem.scale,
    }
    if factor is not None:
        tensors["per_tensor_scale_inv"] = torch.tensor([factor], dtype=torch.bfloat16)
    return tensors


def gptq_config(group_size: int, **changes: Any) -> dict[str, Any]:
    config = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "sym": False}
    return {**config, "desc_act": False, **changes}


def awq_config(group_size: int, **changes: Any) -> dict[str, Any]:
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    return {**config, "version": "gemm", **changes}


def compressed_tensors_config(
    group_size: int | None, *, symmetric: bool = True, fp8: bool = True, **weights: Any
) -> dict[str, Any]:
    """The W4AFP8 preset, or W4A16; `weights` adds to or changes the arguments of the weights."""
    arguments = {"num_bits": 4, "type": "int", "symmetric": symmetric, "dynamic": False}
    arguments |= {"strategy": "group" if group_size else "channel", "group_size": group_size}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {
        "targets": ["Linear"],
        "weights": arguments | weights,
        "input_activations": inputs if fp8 else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
