"""Every refusal of the ops on sparse matrices, their supports and layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib.nn import SparseLowRankLinear

DTYPES = "torch.float32, torch.bfloat16 or torch.float16"
N, K = 4, 130  # two tiles
SUPPORT = wlib.SparseSupport.from_indices(torch.tensor([0, 5, 129, 131]), N, K)[0]
Row = tuple[dict[str, Any], type[Exception], str]


def matrix() -> dict[str, Any]:
    return {"positions": SUPPORT.positions, "offsets": SUPPORT.offsets}


def strided(*shape: int) -> Tensor:
    return torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]


MATRIX: list[Row] = [
    ({"positions": torch.zeros(4, dtype=torch.int32)}, TypeError,
     "expected positions of dtype torch.int16, got torch.int32 (argument 'positions')"),
    ({"positions": torch.zeros(2, 2, dtype=torch.int16)}, ValueError,
     "expected positions of one dimension, got [2, 2] (argument 'positions')"),
    ({"positions": torch.zeros(8, dtype=torch.int16)[::2]}, ValueError,
     "expected contiguous positions, got strides [2] (argument 'positions')"),
    ({"offsets": torch.zeros(3, dtype=torch.int32)}, TypeError,
     "expected offsets of dtype torch.int64, got torch.int32 (argument 'offsets')"),
    ({"offsets": torch.zeros(2, dtype=torch.int64)}, ValueError,
     "expected offsets of shape [3], got [2] (argument 'offsets')"),
    ({"x": torch.zeros(2, K, dtype=torch.int32)}, TypeError,
     f"expected x of dtype {DTYPES}, got torch.int32 (argument 'x')"),
    ({"x": torch.zeros(2, 3, 2 * K)[:, :, ::2]}, ValueError,
     "expected x with unit stride in the last dimension and rows at one distance; call "
     ".contiguous(), got shape [2, 3, 130] with strides [780, 260, 2] (argument 'x')"),
]  # fmt: skip
PRODUCT: list[Row] = [
    *(({name: size}, ValueError, f"expected {name} from 1 to 2^31 - 129, got {size} "
       f"(argument '{name}')") for name in ("rows", "columns") for size in (0, 2**31 - 128)),
    ({"x": torch.zeros(2, N)}, ValueError,
     "expected x of shape [..., 130], got [2, 4] (argument 'x')"),
    ({"x": torch.zeros(())}, ValueError,
     "expected x of shape [..., 130], got [] (argument 'x')"),
    ({"transposed": True}, ValueError,
     "expected x of shape [..., 4], got [2, 130] (argument 'x')"),
    ({"values": torch.zeros(4, dtype=torch.float64)}, TypeError,
     f"expected values of dtype {DTYPES}, got torch.float64 (argument 'values')"),
    ({"x": torch.zeros(2, K, dtype=torch.float64)}, TypeError,
     "expected values of dtype torch.float64 like what is summed, got torch.float32 "
     "(argument 'values')"),
    ({"values": torch.zeros(5)}, ValueError,
     "expected values of shape [4], got [5] (argument 'values')"),
    ({"values": strided(4)}, ValueError,
     "expected contiguous values, got strides [2] (argument 'values')"),
    ({"base": torch.zeros(2, N).half()}, TypeError,
     "expected base of dtype torch.float32, got torch.float16 (argument 'base')"),
    ({"base": torch.zeros(3, N)}, ValueError,
     "expected base of shape [2, 4], got [3, 4] (argument 'base')"),
    ({"base": strided(2, N)}, ValueError,
     "expected contiguous base, got strides [8, 2] (argument 'base')"),
    ({"bias": torch.zeros(N).half()}, TypeError,
     "expected bias of dtype torch.float32, got torch.float16 (argument 'bias')"),
    ({"bias": torch.zeros(K)}, ValueError,
     "expected bias of shape [4], got [130] (argument 'bias')"),
]  # fmt: skip
SAMPLED: list[Row] = [
    ({"dy": torch.zeros(2, N).half()}, TypeError,
     "expected dy of dtype torch.float32, got torch.float16 (argument 'dy')"),
    ({"dy": torch.zeros(3, N)}, ValueError,
     "expected dy of shape [2, 4], got [3, 4] (argument 'dy')"),
    ({"dy": strided(2, N)}, ValueError,
     "expected dy with unit stride in the last dimension and rows at one distance; call "
     ".contiguous(), got shape [2, 4] with strides [8, 2] (argument 'dy')"),
    ({"dy": torch.zeros(2, 0)}, ValueError,
     "expected dy from 1 to 2^31 - 129, got 0 (argument 'dy')"),
    ({"x": torch.zeros(())}, ValueError,
     "expected x from 1 to 2^31 - 129, got 0 (argument 'x')"),
    ({"out_dtype": torch.int8}, TypeError,
     f"expected out_dtype of dtype {DTYPES}, got torch.int8 (argument 'out_dtype')"),
]  # fmt: skip


def check(op: str, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    pattern = f"^{re.escape(f'wlib::{op}: {message}')}$"
    with pytest.raises(ValueError, match=pattern) as error:
        getattr(torch.ops.wlib, op)(**arguments)
    assert type(wlib.errors.typed_error(error.value)) is kind


@pytest.mark.parametrize(("changed", "kind", "message"), [*MATRIX, *PRODUCT])
def test_matmul_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, K), "values": torch.zeros(4), "rows": N, "columns": K}
    check("tile_sparse_matmul", arguments | matrix() | changed, kind, message)


@pytest.mark.parametrize(("changed", "kind", "message"), [*MATRIX, *SAMPLED])
def test_sampled_matmul_refuses(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    x = changed.get("x", torch.zeros(2, K))
    dy = torch.zeros(*x.shape[:-1], N, dtype=x.dtype)
    check("tile_sampled_matmul", {"dy": dy, "x": x} | matrix() | changed, kind, message)


def support(**changed: Any) -> wlib.SparseSupport:
    return wlib.SparseSupport(**(matrix() | {"rows": N, "columns": K} | changed))


def shorts(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int16)


def linear(**changed: Any) -> Tensor:
    arguments = {"x": torch.zeros(2, K), "b": torch.zeros(N, 3), "a": torch.zeros(3, K),
                 "values": torch.zeros(4), "support": SUPPORT}  # fmt: skip
    return wlib.sparse_lowrank_linear(**(arguments | changed))


S, L, M = "wlib.SparseSupport", "wlib.sparse_lowrank_linear", "wlib.nn.SparseLowRankLinear"
FROM = wlib.SparseSupport.from_indices
PYTHON: list[tuple[Any, type[Exception], str]] = [
    (lambda: support(rows=0), ValueError,
     f"{S}: expected rows from 1 to 2^31 - 129, got 0 (argument 'rows')"),
    (lambda: support(positions=torch.zeros(4)), TypeError,
     f"{S}: expected positions of dtype torch.int16, got torch.float32 (argument 'positions')"),
    (lambda: support(offsets=torch.zeros(3)), TypeError,
     f"{S}: expected offsets of dtype torch.int64, got torch.float32 (argument 'offsets')"),
    (lambda: support(columns=300), ValueError,
     f"{S}: expected offsets of shape [4], got [3] (argument 'offsets')"),
    (lambda: support(offsets=torch.tensor([0, 3, 5])), ValueError,
     f"{S}: expected offsets from 0 to 4, got 0 to 5 (argument 'offsets')"),
    (lambda: support(offsets=torch.tensor([1, 3, 4])), ValueError,
     f"{S}: expected offsets from 0 to 4, got 1 to 4 (argument 'offsets')"),
    (lambda: support(offsets=torch.tensor([0, 5, 4])), ValueError,
     f"{S}: expected offsets that ascend, got less after tile 1 (argument 'offsets')"),
    (lambda: support(positions=shorts(0, -5, 129, 1)), ValueError,
     f"{S}: expected positions within tile and matrix (4, 130), got -5 at 1 in tile 0 "
     "(argument 'positions')"),
    (lambda: support(positions=shorts(0, 5, 16384, 1)), ValueError,
     f"{S}: expected positions within tile and matrix (4, 130), got 16384 at 2 in tile 0 "
     "(argument 'positions')"),
    (lambda: support(positions=shorts(0, 5, 512, 1)), ValueError,
     f"{S}: expected positions within tile and matrix (4, 130), got 512 at 2 in tile 0 "
     "(argument 'positions')"),
    (lambda: support(positions=shorts(0, 5, 129, 2)), ValueError,
     f"{S}: expected positions within tile and matrix (4, 130), got 2 at 3 in tile 1 "
     "(argument 'positions')"),
    (lambda: support(positions=shorts(0, 5, 5, 1)), ValueError,
     f"{S}: expected positions that differ in a tile, got 5 at 2 in tile 0 "
     "(argument 'positions')"),
    (lambda: support(positions=shorts(5, 0, 129, 1)), ValueError,
     f"{S}: expected positions that ascend in a tile, got 0 at 1 in tile 0 "
     "(argument 'positions')"),
    (lambda: FROM(torch.zeros(2), N, K), TypeError,
     f"{S}: expected indices of dtype torch.int64, got torch.float32 (argument 'indices')"),
    (lambda: FROM(torch.tensor([3, 520]), N, K), ValueError,
     f"{S}: expected indices from 0 to 519, got 520 (argument 'indices')"),
    (lambda: FROM(torch.tensor([-1]), N, K), ValueError,
     f"{S}: expected indices from 0 to 519, got -1 (argument 'indices')"),
    (lambda: FROM(torch.tensor([3, 7, 3]), N, K), ValueError,
     f"{S}: expected indices that differ, got 3 twice (argument 'indices')"),
    (lambda: wlib.SparseSupport.from_mask(torch.zeros(2, 2)), TypeError,
     f"{S}: expected mask of dtype torch.bool, got torch.float32 (argument 'mask')"),
    (lambda: wlib.SparseSupport.from_mask(torch.zeros(2).bool()), ValueError,
     f"{S}: expected mask of shape [rows, columns], got [2] (argument 'mask')"),
    (lambda: SUPPORT.dense(torch.zeros(5)), ValueError,
     f"{S}: expected values of shape [4], got [5] (argument 'values')"),
    (lambda: SUPPORT.gather(torch.zeros(5, K)), ValueError,
     f"{S}: expected matrix of shape [4, 130], got [5, 130] (argument 'matrix')"),
    *((lambda d=d: wlib.sparse_support(N, K, d), ValueError,
       f"wlib.sparse_support: expected density from 0 to 1, got {d} (argument 'density')")
      for d in (-0.1, 1.5)),
    (lambda: linear(a=torch.zeros(K)), ValueError,
     f"{L}: expected a of two dimensions, got [130] (argument 'a')"),
    (lambda: linear(b=torch.zeros(N, 2)), ValueError,
     f"{L}: expected b of shape [4, 3], got [4, 2] (argument 'b')"),
    (lambda: linear(a=torch.zeros(3, K).half()), TypeError,
     f"{L}: expected a of dtype torch.float32, got torch.float16 (argument 'a')"),
    (lambda: linear(x=torch.zeros(2, N)), ValueError,
     f"{L}: expected x of shape [..., 130], got [2, 4] (argument 'x')"),
    (lambda: linear(values=torch.zeros(3)), ValueError,
     "wlib::tile_sparse_matmul: expected values of shape [4], got [3] (argument 'values')"),
    (lambda: linear(bias=torch.zeros(N).half()), TypeError,
     "wlib::tile_sparse_matmul: expected bias of dtype torch.float32, got torch.float16 "
     "(argument 'bias')"),
    (lambda: SparseLowRankLinear(4, 4, 0), ValueError,
     f"{M}: expected rank of at least 1, got 0 (argument 'rank')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PYTHON)
def test_python_refuses(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as error:
        call()
    assert type(error.value) is kind
