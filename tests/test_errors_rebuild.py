"""Every refusal of torch.ops.wlib.rebuild and of the functions above it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib import rebuild

N, K, R = 8, 6, 2
DTYPES = "torch.float32, torch.bfloat16 or torch.float16"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def arguments(**changed: Any) -> dict[str, Any]:
    """Two layers [8, 6] of low rank 2 that fit together, except for `changed`."""
    fitting: dict[str, Any] = {
        "w0": [zeros(N, K), zeros(N, 3, 2)],
        "operands": [zeros(N, R), zeros(R, K)] * 2,
        "forms": [0, 0],
        "scales": [1.0, 1.0],
    }
    return fitting | changed


def second(a: Tensor, b: Tensor) -> dict[str, Any]:
    """The operands of the second layer changed."""
    return {"operands": [zeros(N, R), zeros(R, K), a, b]}


def one(form: int, w0: list[Tensor], *operands: Tensor) -> dict[str, Any]:
    return {"w0": w0, "operands": list(operands), "forms": [form], "scales": [1.0]}


BLOCKS = "expected w0 of shape [8, a multiple of 2], got"
OP: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"forms": [0, 4]}, ValueError, "expected a form of 0 (low rank), 1 (hadamard), 2 (kron) or 3 "
     "(block_affine), got 4 (argument 'forms[1]')"),
    ({"scales": [1.0]}, ValueError, "expected scales of 2 layers, got 1 (argument 'scales')"),
    ({"w0": [zeros(N, K)]}, ValueError,
     "expected w0 of 2 layers, or of none, got 1 (argument 'w0')"),
    ({"operands": [zeros(N, R)] * 3}, ValueError,
     "expected 4 operands for these forms, got 3 (argument 'operands')"),
    (second(zeros(N, R, dtype=torch.int32), zeros(R, K)), TypeError,
     f"expected operands[2] of dtype {DTYPES}, got torch.int32 (argument 'operands[2]')"),
    (second(zeros(N, R), zeros(R, K, dtype=torch.float16)), TypeError,
     "expected operands[3] of dtype torch.float32, got torch.float16 (argument 'operands[3]')"),
    (second(zeros(N, R), zeros(R, 3, 2)), ValueError,
     "expected an operand of 2 dimensions, got [2, 3, 2] (argument 'operands[3]')"),
    (second(zeros(1, R).expand(2**31, R), zeros(R, K)), ValueError,
     "expected sizes and strides below 2^31, got [2147483648, 2] (argument 'operands[2]')"),
    (second(zeros(N, R), zeros(R + 1, K)), ValueError,
     "expected operands[3] of shape [2, 6], got [3, 6] (argument 'operands[3]')"),
    (one(1, [], zeros(N, R), zeros(R, K), zeros(N + 1, R), zeros(R, K)), ValueError,
     "expected operands[2] of shape [8, 2], got [9, 2] (argument 'operands[2]')"),
    (one(1, [], zeros(N, R), zeros(R, K), zeros(N, R), zeros(R, K + 1)), ValueError,
     "expected operands[3] of shape [2, 6], got [2, 7] (argument 'operands[3]')"),
    (one(2, [], zeros(1, 1).expand(2**16, 1), zeros(1, 1).expand(2**16, 1)), ValueError,
     "expected an output of fewer than 2^31 rows and columns, got [65536, 1] "
     "(argument 'operands[0]')"),
    (one(3, [zeros(N, K)], zeros(4, 2, 3)), ValueError,
     "expected operands[0] of shape [4, 2, 2], got [4, 2, 3] (argument 'operands[0]')"),
    (one(3, [zeros(N, K)], zeros(4, 2, 4)[..., ::2]), ValueError,
     "expected contiguous operands[0], got strides [8, 4, 2] (argument 'operands[0]')"),
    (one(3, [], zeros(4, 2, 2)), ValueError,
     "expected w0 for form 3 (block_affine), got none (argument 'w0')"),
    (one(3, [zeros(N, 5)], zeros(4, 2, 2)), ValueError, f"{BLOCKS} [8, 5] (argument 'w0[0]')"),
    (one(3, [zeros(N, 3, 2)], zeros(4, 2, 2)), ValueError,
     f"{BLOCKS} [8, 3, 2] (argument 'w0[0]')"),
    ({"w0": [zeros(N, K), zeros(N, K, dtype=torch.int8)]}, TypeError,
     f"expected w0[1] of dtype {DTYPES}, got torch.int8 (argument 'w0[1]')"),
    ({"w0": [zeros(N, K), zeros(K, N).T]}, ValueError,
     "expected contiguous w0[1], got strides [1, 8] (argument 'w0[1]')"),
    ({"w0": [zeros(N, K), zeros(K, N)]}, ValueError,
     "expected w0 of 8 rows of 6 elements, got [6, 8] (argument 'w0[1]')"),
    ({"w0": [zeros(N, K + 1), zeros(N, K)]}, ValueError,
     "expected w0 of 8 rows of 6 elements, got [8, 7] (argument 'w0[0]')"),
]  # fmt: skip
OUT_DTYPE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"out_dtype": torch.int32}, TypeError,
     f"expected out_dtype of dtype {DTYPES}, got torch.int32 (argument 'out_dtype')"),
    ({"seed": 1}, TypeError, "expected out_dtype of dtype torch.bfloat16 to round by a seed, got "
     "torch.float32 (argument 'out_dtype')"),
]  # fmt: skip
OUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"out": [zeros(N, K)]}, ValueError, "expected out of 2 layers, got 1 (argument 'out')"),
    ({"out": [zeros(N, K), zeros(N, K)]}, ValueError,
     "expected out[1] of shape [8, 3, 2], got [8, 6] (argument 'out[1]')"),
    ({"out": [zeros(N, K, dtype=torch.int64), zeros(N, 3, 2)]}, TypeError,
     f"expected out[0] of dtype {DTYPES}, got torch.int64 (argument 'out[0]')"),
    ({"out": [zeros(N, K), zeros(N, 3, 2)], "seed": 1}, TypeError,
     "expected out[0] of dtype torch.bfloat16 to round by a seed, got torch.float32 "
     "(argument 'out[0]')"),
    ({"out": [zeros(K, N).T, zeros(N, 3, 2)]}, ValueError,
     "expected contiguous out[0], got strides [1, 8] (argument 'out[0]')"),
]  # fmt: skip


def check(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('wlib::rebuild: ' + message)}$") as error:
        call()
    assert type(wlib.errors.typed_error(error.value)) is kind


@pytest.mark.parametrize(("changed", "kind", "message"), [*OP, *OUT_DTYPE])
def test_op_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    check(lambda: torch.ops.wlib.rebuild(**arguments(**changed)), kind, message)


@pytest.mark.parametrize(("changed", "kind", "message"), [*OP, *OUT])
def test_out_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    own = arguments(**changed)
    out = own.pop("out", [torch.full((N, K), 7.0), torch.full((N, 3, 2), 7.0)])
    before = [t.clone() for t in out]
    check(lambda: torch.ops.wlib.rebuild.out(**own, out=out), kind, message)
    assert all(map(torch.equal, out, before))


def test_block_affine_refuses_to_overwrite_its_base() -> None:
    w0 = zeros(N, K)
    check(
        lambda: torch.ops.wlib.rebuild.out([w0], [zeros(4, 2, 2)], [3], [1.0], out=[w0]),
        ValueError,
        "expected out apart from w0 for form 3 (block_affine) or another dtype, got the memory of "
        "w0 (argument 'out[0]')",
    )


CORE, FACTORS = zeros(2, 3), [zeros(8, 2), zeros(6, 3)]
PYTHON: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: rebuild.loha(None, zeros(2, 8), zeros(2, 6), zeros(2, 8), zeros(2, 6),
                          zeros(2, 2, 1)), ValueError,
     "wlib.rebuild.loha: expected t1 and t2, or neither, got one of them (argument 't2')"),
    (lambda: rebuild.lokr(None, zeros(2, 2), w2_a=zeros(2, 2)), ValueError,
     "wlib.rebuild.lokr: expected w2, or w2_a and w2_b, got neither (argument 'w2')"),
    (lambda: rebuild.cp(None, [zeros(8, 2)]), ValueError,
     "wlib.rebuild.cp: expected at least 2 factors, got 1 (argument 'factors')"),
    (lambda: rebuild.cp(None, [zeros(8, 2), zeros(6, 3)]), ValueError,
     "wlib.rebuild.cp: expected a matrix of 2 columns, got [6, 3] (argument 'factors[1]')"),
    (lambda: rebuild.merge_many([], [zeros(8, 6)]), ValueError,
     "wlib.rebuild.merge_many: expected 0 outs, got 1 (argument 'outs')"),
    (lambda: rebuild.merge_many([functools.partial(len, "x")]), TypeError,  # type: ignore[list-item]
     "wlib.rebuild.merge_many: expected a functools.partial of a function of wlib.rebuild, got "
     "functools.partial(<built-in function len>, 'x') (argument 'calls[0]')"),
    (lambda: wlib.tucker_reconstruct(zeros(), []), ValueError,
     "wlib.tucker_reconstruct: expected core of at least one dimension, got [] (argument 'core')"),
    (lambda: wlib.tucker_reconstruct(CORE, FACTORS[:1]), ValueError,
     "wlib.tucker_reconstruct: expected 2 factors, got 1 (argument 'factors')"),
    (lambda: wlib.tucker_reconstruct(CORE, FACTORS[::-1]), ValueError,
     "wlib.tucker_reconstruct: expected a factor of shape [*, 2], got [6, 3] "
     "(argument 'factors[0]')"),
    (lambda: wlib.tucker_merge(zeros(6, 8), CORE, FACTORS), ValueError,
     "wlib.tucker_merge: expected w0 of shape [8, 6], got [6, 8] (argument 'w0')"),
    (lambda: wlib.tucker_merge(zeros(8), zeros(2), FACTORS[:1], in_first=True), ValueError,
     "wlib.tucker_merge: expected core of at least 2 dimensions, got 1 (argument 'core')"),
    (lambda: wlib.tucker_merge_many([(zeros(8, 6), CORE, FACTORS, 1.0)], []), ValueError,
     "wlib.tucker_merge: expected 1 outs, got 0 (argument 'outs')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PYTHON)
def test_functions_refuse(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def test_functions_raise_the_class_of_the_op_s_message() -> None:
    with pytest.raises(TypeError, match="expected operands"):
        rebuild.lora(None, zeros(R, K, dtype=torch.int64), zeros(N, R, dtype=torch.int64))
