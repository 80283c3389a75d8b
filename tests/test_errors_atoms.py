"""Every refusal of the ops on shared atoms: the class of the error and its whole message."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib

DTYPES = "torch.float32, torch.bfloat16 or torch.float16"
L, S, O, I = 3, 2, 4, 6  # noqa: E741  layers, atoms, rows, columns
FP8 = torch.float8_e4m3fn
INT4 = wlib.Int4Weight.quantize(torch.ones(O, 32), 32)
Row = tuple[dict[str, Any], type[Exception], str]


def strided(*shape: int) -> Tensor:
    return torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]


COMMON: list[Row] = [
    ({"atoms": torch.zeros(S, O, I, dtype=torch.int32)}, TypeError,
     f"expected atoms of dtype {DTYPES}, got torch.int32 (argument 'atoms')"),
    *(({"atoms": torch.zeros(shape)}, ValueError,
       "expected atoms of shape [S, rows, ...] with 1 to 32768 atoms, got "
       f"{list(shape)} (argument 'atoms')") for shape in ((S,), (0, O, I), (40000, 1, 1))),
    ({"atoms": strided(S, O, I)}, ValueError,
     "expected contiguous atoms, got strides [48, 12, 2] (argument 'atoms')"),
    *(({"coef": torch.zeros(shape)}, ValueError,
       "expected coef of shape [L, 2] or [L, 2, 4] to match atoms [2, 4, 6], got "
       f"{list(shape)} (argument 'coef')")
      for shape in ((S,), (0, S), (L, S + 1), (L, S, O + 1), (L, S, O, 1), (40000, S))),
    ({"coef": torch.zeros(L, S, dtype=torch.bfloat16)}, TypeError,
     "expected coef of dtype torch.float32, got torch.bfloat16 (argument 'coef')"),
    ({"atoms": torch.zeros(S, O, I, dtype=torch.float64)}, TypeError,
     "expected coef of dtype torch.float64, got torch.float32 (argument 'coef')"),
]  # fmt: skip
F64: dict[str, Any] = {
    "atoms": torch.zeros(S, O, I, dtype=torch.float64),
    "coef": torch.zeros(L, S, dtype=torch.float64),
}
FORWARD: list[Row] = [
    ({"base": torch.zeros(L, O, I + 1)}, ValueError,
     "expected base of shape [3, 4, 6], got [3, 4, 7] (argument 'base')"),
    ({"base": torch.zeros(L, O, I, dtype=torch.int8)}, TypeError,
     f"expected base of dtype {DTYPES}, got torch.int8 (argument 'base')"),
    ({"base": strided(L, O, I)}, ValueError,
     "expected contiguous base, got strides [48, 12, 2] (argument 'base')"),
    (F64 | {"base": torch.zeros(L, O, I)}, TypeError,
     "expected base of dtype torch.float64 like what is summed, got torch.float32 "
     "(argument 'base')"),
    ({"residual_a": torch.zeros(L, O, 1)}, ValueError,
     "expected residual_a and residual_b, or neither, got residual_a alone "
     "(argument 'residual_b')"),
    ({"residual_b": torch.zeros(L, 1, I)}, ValueError,
     "expected residual_a and residual_b, or neither, got residual_b alone "
     "(argument 'residual_a')"),
    ({"residual_a": torch.zeros(L, O + 1, 2), "residual_b": torch.zeros(L, 2, I)}, ValueError,
     "expected residual_a of shape [3, 4, 2], got [3, 5, 2] (argument 'residual_a')"),
    ({"residual_a": torch.zeros(L, O, 2), "residual_b": torch.zeros(L, 1, I)}, ValueError,
     "expected residual_b of shape [3, 2, 6], got [3, 1, 6] (argument 'residual_b')"),
    ({"residual_a": torch.zeros(L, O, 1).half(), "residual_b": torch.zeros(L, 1, I)}, TypeError,
     "expected residual_b of dtype torch.float16, got torch.float32 (argument 'residual_b')"),
    ({"out_dtype": torch.float64}, TypeError,
     f"expected out_dtype of dtype {DTYPES}, got torch.float64 (argument 'out_dtype')"),
    (F64 | {"out_dtype": torch.float32}, TypeError,
     "expected out_dtype of dtype torch.float64 like what is summed, got torch.float32 "
     "(argument 'out_dtype')"),
]  # fmt: skip
BACKWARD: list[Row] = [
    ({"grad": torch.zeros(L + 1, O, I)}, ValueError,
     "expected grad of shape [3, 4, 6], got [4, 4, 6] (argument 'grad')"),
    ({"grad": strided(L, O, I)}, ValueError,
     "expected contiguous grad, got strides [48, 12, 2] (argument 'grad')"),
    ({"grad": torch.zeros(L, O, I, dtype=torch.float64)}, TypeError,
     f"expected grad of dtype {DTYPES}, got torch.float64 (argument 'grad')"),
]  # fmt: skip


def check(op: str, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    pattern = f"^{re.escape(f'wlib::{op}: {message}')}$"
    with pytest.raises(ValueError, match=pattern) as error:
        getattr(torch.ops.wlib, op)(**arguments)
    assert type(wlib.errors.typed_error(error.value)) is kind


@pytest.mark.parametrize(("changed", "kind", "message"), [*COMMON, *FORWARD])
def test_reconstruct_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"atoms": torch.zeros(S, O, I), "coef": torch.zeros(L, S)}
    check("atoms_reconstruct", arguments | changed, kind, message)


@pytest.mark.parametrize(("changed", "kind", "message"), [*COMMON, *BACKWARD])
def test_backward_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {
        "grad": torch.zeros(L, O, I),
        "atoms": torch.zeros(S, O, I),
        "coef": torch.zeros(L, S),
    }
    check("atoms_reconstruct_backward", arguments | changed, kind, message)


M, K = 5, 6
LINEAR: list[Row] = [
    ({"x": torch.zeros(M, K, dtype=torch.int32)}, TypeError,
     f"expected x of dtype {DTYPES}, got torch.int32 (argument 'x')"),
    ({"x": torch.zeros(1, M, K)}, ValueError,
     "expected x of shape [M, K], got [1, 5, 6] (argument 'x')"),
    ({"x": strided(M, K)}, ValueError,
     "expected contiguous x, got strides [12, 2] (argument 'x')"),
    *(({"atoms": torch.zeros(shape)}, ValueError,
       f"expected atoms of shape [S, N, 6] with 1 to 32768 atoms, got {list(shape)} "
       "(argument 'atoms')") for shape in ((O, K), (S, O, K + 1), (0, O, K), (32769, 1, K))),
    ({"atoms": torch.zeros(S, O, K).half()}, TypeError,
     "expected atoms of dtype torch.float32, got torch.float16 (argument 'atoms')"),
    ({"x": torch.zeros(M, K).double(), "atoms": torch.zeros(S, O, K).to(FP8)}, TypeError,
     "expected atoms of dtype torch.float64, got torch.float8_e4m3fn (argument 'atoms')"),
    ({"atoms": strided(S, O, K)}, ValueError,
     "expected contiguous atoms, got strides [48, 12, 2] (argument 'atoms')"),
    *(({"coef": torch.zeros(shape)}, ValueError,
       f"expected coef of shape [2] or [5, 2], got {list(shape)} (argument 'coef')")
      for shape in ((), (S + 1,), (M,), (1, S), (M, S + 1), (M, S, 1))),
    ({"coef": torch.zeros(S).half()}, TypeError,
     "expected coef of dtype torch.float32, got torch.float16 (argument 'coef')"),
    ({"coef": torch.zeros(2 * S)[::2]}, ValueError,
     "expected contiguous coef, got strides [2] (argument 'coef')"),
    ({"bias": torch.zeros(O + 1)}, ValueError,
     "expected bias of shape [4], got [5] (argument 'bias')"),
    ({"bias": torch.zeros(O).half()}, TypeError,
     "expected bias of dtype torch.float32, got torch.float16 (argument 'bias')"),
    ({"base": torch.zeros(O, K + 1)}, ValueError,
     "expected base of shape [4, 6], got [4, 7] (argument 'base')"),
    ({"base": torch.zeros(O, K).double()}, TypeError,
     "expected base of dtype torch.float32, got torch.float64 (argument 'base')"),
    ({"base": strided(O, K)}, ValueError,
     "expected contiguous base, got strides [12, 2] (argument 'base')"),
    ({"x": torch.zeros(M, K).double(), "atoms": torch.zeros(S, O, K).double()}, TypeError,
     "expected coef of dtype torch.float64, got torch.float32 (argument 'coef')"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "message"), LINEAR)
def test_linear_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(M, K), "atoms": torch.zeros(S, O, K), "coef": torch.zeros(S)}
    check("atoms_linear", arguments | changed, kind, message)


PACKED = wlib.PackedInt4Experts.quantize(torch.ones(S, O, 64), 32)
LINEAR_INT4: list[Row] = [
    ({"group_size": None}, ValueError,
     "expected n and group_size, or neither, got n alone (argument 'n')"),
    ({"n": None}, ValueError,
     "expected n and group_size, or neither, got group_size alone (argument 'group_size')"),
    ({"layout_version": 2}, ValueError,
     "expected layout_version 1 (pack the atoms with this version of wlib), got 2 "
     "(argument 'layout_version')"),
    *(({"n": n}, ValueError, f"expected n of at least 1 and below 2^31, got {n} (argument 'n')")
      for n in (0, 2**31)),
    ({"group_size": 16}, ValueError,
     "expected group_size of 32, 64, a multiple of 128 or k itself, dividing k=64 (a multiple of "
     "32), got 16 (argument 'group_size')"),
    *((changed, ValueError,
       f"expected atoms of shape [S, {blocks}, {size}] with 1 to 32768 atoms, packed without zero "
       f"points, to match n={n}, k=64, group_size={group}, got {list(got)} (argument 'atoms')")
      for changed, n, group, blocks, size, got in (
          ({"n": 65}, 65, 32, 2, 4864, (2, 1, 4864)),
          ({"group_size": 64}, 4, 64, 1, 4480, (2, 1, 4864)),
          ({"atoms": PACKED.data[0]}, 4, 32, 1, 4864, (1, 4864)),
          ({"atoms": PACKED.data[:0]}, 4, 32, 1, 4864, (0, 1, 4864)),
          ({"atoms": torch.zeros(32769, 1, 1)}, 4, 32, 1, 4864, (32769, 1, 1)))),
    ({"atoms": PACKED.data.to(torch.int8)}, TypeError,
     "expected atoms of dtype torch.uint8, got torch.int8 (argument 'atoms')"),
    ({"atoms": PACKED.data.view(FP8)}, TypeError,
     "expected atoms of dtype torch.uint8, got torch.float8_e4m3fn (argument 'atoms')"),
    ({"atoms": torch.zeros(S, 1, 2 * 4864, dtype=torch.uint8)[..., ::2]}, ValueError,
     "expected contiguous atoms, got strides [9728, 9728, 2] (argument 'atoms')"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "message"), LINEAR_INT4)
def test_linear_refuses_int4_atoms(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    arguments = {"x": torch.zeros(M, 64), "atoms": PACKED.data, "coef": torch.zeros(S)}
    check("atoms_linear", arguments | {"n": O, "group_size": 32} | changed, kind, message)


PYTHON: list[tuple[Any, type[Exception], str]] = [
    (lambda: wlib.atoms_reconstruct(torch.zeros(S, O, I), torch.zeros(L, S).half()), TypeError,
     "wlib::atoms_reconstruct: expected coef of dtype torch.float32, got torch.float16 "
     "(argument 'coef')"),
    (lambda: wlib.atoms_linear(torch.zeros(()), torch.zeros(S, O, K), torch.zeros(S)), ValueError,
     "wlib.atoms_linear: expected x of shape [..., K], got [] (argument 'x')"),
    (lambda: wlib.atoms_linear(torch.zeros(2, 3, K), torch.zeros(S, O, K), torch.zeros(3, S)),
     ValueError,
     "wlib.atoms_linear: expected coef of shape [2, 3, 2], got [3, 2] (argument 'coef')"),
    (lambda: wlib.atoms_linear(torch.zeros(M, K), torch.zeros(S, O, K).half(), torch.zeros(S)),
     TypeError, "wlib::atoms_linear: expected atoms of dtype torch.float32, got torch.float16 "
     "(argument 'atoms')"),
    (lambda: wlib.atoms_linear(
        torch.zeros(M, K), torch.zeros(S, O, K, dtype=FP8, requires_grad=True), torch.zeros(S)),
     ValueError, "wlib.atoms_linear: expected float8_e4m3fn atoms without requires_grad, got some "
     "with it (argument 'atoms')"),
    *((lambda atoms=atoms: wlib.atoms_linear(torch.zeros(M, 32), atoms, torch.zeros(S)), TypeError,
       f"wlib.atoms_linear: expected a tensor or at least one Int4Weight, got {got} "
       "(argument 'atoms')")
      for atoms, got in (([], "none"), ([torch.zeros(O, 32), INT4], "Tensor, Int4Weight"))),
    (lambda: wlib.atoms_linear(torch.zeros(M, 32),
                               [INT4, wlib.Int4Weight.quantize(torch.ones(O, 64), 32)],
                               torch.zeros(S)), ValueError,
     "wlib.atoms_linear: expected INT4 weights of [4, 32], got [4, 64] (argument 'atoms')"),
    (lambda: wlib.atoms_linear(torch.zeros(M, 96), PACKED, torch.zeros(S)), ValueError,
     "wlib.atoms_linear: expected x of shape [..., 64], got [5, 96] (argument 'x')"),
    (lambda: wlib.atoms_from_layers([], 1), ValueError,
     "wlib.atoms_from_layers: expected at least one weight, got none (argument 'weights')"),
    (lambda: wlib.atoms_from_layers([torch.zeros(2), torch.zeros(3)], 1), ValueError,
     "wlib.atoms_from_layers: expected weights of shape [2], got [3] (argument 'weights')"),
    (lambda: wlib.atoms_from_layers([torch.zeros(2), torch.zeros(2).half()], 1), TypeError,
     "wlib.atoms_from_layers: expected weights of dtype torch.float32, got torch.float16 "
     "(argument 'weights')"),
    (lambda: wlib.atoms_from_layers(torch.zeros(2, 3, dtype=torch.int32), 1), TypeError,
     "wlib.atoms_from_layers: expected weights of dtype torch.float32 or torch.float16 or "
     "torch.bfloat16 or torch.float64, got torch.int32 (argument 'weights')"),
    (lambda: wlib.atoms_from_layers(torch.zeros(2, 0), 1), ValueError,
     "wlib.atoms_from_layers: expected weights of shape [L, ...], got [2, 0] "
     "(argument 'weights')"),
    *((lambda n=n: wlib.atoms_from_layers(torch.ones(2, 3), n), ValueError,
       f"wlib.atoms_from_layers: expected num_atoms from 1 to 2, got {n} (argument 'num_atoms')")
      for n in (0, 3)),
    (lambda: wlib.combine([[torch.zeros(2)], []], torch.zeros(1, 2)), ValueError,
     "wlib.combine: expected lists of 1 tensors, got 0 (argument 'tensor_lists')"),
    (lambda: wlib.combine([[torch.zeros(2)]], torch.zeros(1, 2)), ValueError,
     "wlib.combine: expected coef of shape [P, 1] or [1], got [1, 2] (argument 'coef')"),
    (lambda: wlib.combine([[torch.zeros(2)]], 2.0), ValueError,
     "wlib.combine: expected coef of shape [P, 1] or [1], got float (argument 'coef')"),
    (lambda: wlib.combine([[torch.zeros(2)]], torch.zeros(0, 1)), ValueError,
     "wlib::atoms_combine: expected coef of shape [P, S], 1 to 32768 each, got [0, 1] "
     "(argument 'coef')"),
    (lambda: wlib.combine([[], []], torch.zeros(1, 2)), ValueError,
     "wlib::atoms_combine: expected a positive multiple of S=2 tensors, got 0 "
     "(argument 'tensors')"),
    (lambda: wlib.combine([[torch.zeros(2)], [torch.zeros(3)]], torch.zeros(1, 2)), ValueError,
     "wlib::atoms_combine: expected tensors of shape [2], got [3] (argument 'tensors')"),
    (lambda: wlib.combine([[torch.zeros(2)], [torch.zeros(2).half()]], torch.zeros(1, 2)),
     TypeError, "wlib::atoms_combine: expected tensors of dtype torch.float32, got torch.float16 "
     "(argument 'tensors')"),
    (lambda: wlib.combine([[strided(2)]], torch.zeros(1, 1)), ValueError,
     "wlib::atoms_combine: expected contiguous tensors, got strides [2] (argument 'tensors')"),
    (lambda: wlib.combine([[torch.zeros(2)]], torch.zeros(1, 1).double()), TypeError,
     "wlib::atoms_combine: expected coef of dtype torch.float32, got torch.float64 "
     "(argument 'coef')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PYTHON)
def test_python_refuses(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as error:
        call()
    assert type(error.value) is kind
