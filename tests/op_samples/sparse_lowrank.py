"""Schemas of the sparse_lowrank ops, and calls that cover every argument."""

from __future__ import annotations

from typing import Any

import torch

import wlib

SCHEMAS = {
    "tile_sparse_matmul.default": "wlib::tile_sparse_matmul(Tensor x, Tensor values, "
    "Tensor positions, Tensor offsets, int rows, int columns, bool transposed=False, "
    "Tensor? base=None, Tensor? bias=None) -> Tensor",
    "tile_sampled_matmul.default": "wlib::tile_sampled_matmul(Tensor dy, Tensor x, "
    "Tensor positions, Tensor offsets, ScalarType? out_dtype=None) -> Tensor",
}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both directions, with and without gradients, rows that lie apart, empty batches."""
    support = wlib.sparse_support(7, 130, 0.2)
    matrix = support.positions, support.offsets, 7, 130
    x, dy = torch.randn(2, 3, 130), torch.randn(2, 3, 7)
    values = torch.randn(support.count, requires_grad=True)
    leaves = [t.clone().requires_grad_() for t in (x, dy, torch.randn(7))]
    half, short = values.detach().bfloat16(), torch.randn(4, 140).bfloat16()[:, :130]
    return [
        ("tile_sparse_matmul.default", (leaves[0], values, *matrix, False, *leaves[1:]), {}),
        ("tile_sparse_matmul.default", (dy, values, *matrix, True, x), {}),
        ("tile_sparse_matmul.default", (short, half, *matrix), {}),
        ("tile_sparse_matmul.default", (short[:0], values.detach(), *matrix), {}),
        ("tile_sampled_matmul.default", (leaves[1], leaves[0], *matrix[:2]), {}),
        ("tile_sampled_matmul.default",
         (dy.half(), x.half(), *matrix[:2], torch.float32), {}),
        ("tile_sampled_matmul.default", (dy[:0], x[:0], *matrix[:2]), {}),
    ]  # fmt: skip
