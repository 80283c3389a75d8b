"""Every refusal: the class of the error and its whole message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wlib

FP8 = torch.float8_e4m3fn
M, N, K = 3, 100, 256


def gemm(**changed: Any) -> dict[str, Any]:
    """Arguments of the op that fit together, [3, 256] x [100, 256], except for `changed`."""
    arguments: dict[str, Any] = {
        "x": torch.zeros(M, K, dtype=FP8),
        "weight": torch.zeros(2, 8704, dtype=torch.uint8),
        "x_scale": torch.ones(M),
        "n": N,
        "group_size": 128,
    }
    return arguments | changed


def weight(**changed: Any) -> wlib.Int4Weight:
    """An INT4 weight [100, 256] with groups of 128, except for `changed`."""
    tensors: dict[str, Any] = {
        "codes": torch.zeros(N, K // 2, dtype=torch.uint8),
        "group_scale": torch.ones(N, 2, dtype=torch.bfloat16),
    }
    return wlib.Int4Weight(**tensors | changed)


def strided(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of every second element."""
    return torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


GROUPS = "group_size of 32, 64, a multiple of 128 or k itself, dividing"
DTYPES = "torch.float32, torch.bfloat16 or torch.float16"
OUT_DTYPES = "torch.float32, torch.bfloat16, torch.float16 or torch.float8_e4m3fn"

# What torch.ops.wlib.int4fp8_gemm refuses: changed arguments, class after translation, message.
GEMM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(M, K)}, TypeError,
     "expected x of dtype torch.float8_e4m3fn, got torch.float32 (argument 'x')"),
    ({"x": torch.zeros(M, K, dtype=torch.float8_e5m2)}, TypeError,
     "expected x of dtype torch.float8_e4m3fn, got torch.float8_e5m2 (argument 'x')"),
    ({"x": torch.zeros((), dtype=FP8)}, ValueError,
     "expected x of at least one dimension, got a scalar (argument 'x')"),
    ({"x": strided(M, K, dtype=FP8)}, ValueError,
     "expected x with unit stride in the last dimension and rows at one distance; call "
     ".contiguous(), got shape [3, 256] with strides [512, 2] (argument 'x')"),
    ({"x": torch.zeros(M, 2, K, dtype=FP8).transpose(0, 1), "x_scale": torch.ones(2, M)},
     ValueError,
     "expected x with unit stride in the last dimension and rows at one distance; call "
     ".contiguous(), got shape [2, 3, 256] with strides [256, 512, 1] (argument 'x')"),
    ({"weight": torch.zeros(2, 8704)}, TypeError,
     "expected weight of dtype torch.uint8, got torch.float32 (argument 'weight')"),
    ({"weight": torch.zeros(2, 8448, dtype=torch.uint8)}, ValueError,
     "expected weight of shape [2, 8704] (or 9216 columns with zero points) to match n=100, k=256, "
     "group_size=128, got [2, 8448] (argument 'weight')"),
    ({"weight": torch.zeros(8704, dtype=torch.uint8)}, ValueError,
     "expected weight of shape [2, 8704] (or 9216 columns with zero points) to match n=100, k=256, "
     "group_size=128, got [8704] (argument 'weight')"),
    ({"n": 129}, ValueError,
     "expected weight of shape [3, 8704] (or 9216 columns with zero points) to match n=129, k=256, "
     "group_size=128, got [2, 8704] (argument 'weight')"),
    ({"weight": strided(2, 8704, dtype=torch.uint8)}, ValueError,
     "expected contiguous weight, got strides [17408, 2] (argument 'weight')"),
    ({"n": 0}, ValueError, "expected n of at least 1 and below 2^31, got 0 (argument 'n')"),
    ({"n": 2**31}, ValueError,
     "expected n of at least 1 and below 2^31, got 2147483648 (argument 'n')"),
    *(({"group_size": size}, ValueError,
       f"expected {GROUPS} k=256 (a multiple of 32), got {size} "
       "(argument 'group_size')") for size in (0, -128, 16, 96, 384, 512)),
    ({"x_scale": torch.ones(M, dtype=torch.bfloat16)}, TypeError,
     "expected x_scale of dtype torch.float32, got torch.bfloat16 (argument 'x_scale')"),
    ({"x_scale": torch.ones(M, 1)}, ValueError,
     "expected x_scale of shape [3], got [3, 1] (argument 'x_scale')"),
    ({"x_scale": strided(M)}, ValueError,
     "expected contiguous x_scale, got strides [2] (argument 'x_scale')"),
    ({"layout_version": 2}, ValueError,
     "expected layout_version 1 (pack the weight with this version of wlib), got 2 "
     "(argument 'layout_version')"),
    ({"bias": torch.zeros(N, dtype=torch.float64)}, TypeError,
     f"expected bias of dtype {DTYPES}, got torch.float64 (argument 'bias')"),
    ({"bias": torch.zeros(N + 1)}, ValueError,
     "expected bias of shape [100], got [101] (argument 'bias')"),
    ({"bias": strided(N)}, ValueError,
     "expected contiguous bias, got strides [2] (argument 'bias')"),
    ({"x": torch.zeros(1, K).to(torch.float8_e4m3fn).expand(2**31, K)}, ValueError,
     f"expected x of fewer than 2^31 rows, got [2147483648, {K}] (argument 'x')"),
]  # fmt: skip
GEMM += [
    ({"activation": "gelu"}, ValueError,
     "expected activation 'none' or 'silu_mul', got 'gelu' (argument 'activation')"),
    ({"activation": "silu_mul", "n": 99}, ValueError,
     "expected an even n, rows of gate and up in turn, got 99 (argument 'n')"),
    ({"residual": torch.zeros(M, N, dtype=torch.float64)}, TypeError,
     f"expected residual of dtype {DTYPES}, got torch.float64 (argument 'residual')"),
    ({"residual": torch.zeros(M, N + 1)}, ValueError,
     "expected residual of shape [3, 100], got [3, 101] (argument 'residual')"),
    ({"residual": torch.zeros(M, N), "activation": "silu_mul"}, ValueError,
     "expected residual of shape [3, 50], got [3, 100] (argument 'residual')"),
    ({"residual": strided(M, N)}, ValueError,
     "expected contiguous residual, got strides [200, 2] (argument 'residual')"),
    ({"x_sums": torch.zeros(2, 4, dtype=torch.bfloat16)}, TypeError,
     "expected x_sums of dtype torch.float32, got torch.bfloat16 (argument 'x_sums')"),
    *(({"x_sums": torch.zeros(shape)}, ValueError,
       f"expected x_sums of shape [2, 4], got {list(shape)} (argument 'x_sums')")
      for shape in ((2, 3), (1, 4), (8,))),
    ({"x_sums": strided(2, 4)}, ValueError,
     "expected contiguous x_sums, got strides [8, 2] (argument 'x_sums')"),
]  # fmt: skip
OUT_DTYPE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"out_dtype": torch.float64}, TypeError,
     f"expected out_dtype of dtype {OUT_DTYPES}, got torch.float64 (argument 'out_dtype')"),
    ({"out_scale": torch.tensor(1.0)}, TypeError,
     "expected out_dtype of dtype torch.float8_e4m3fn with out_scale, got torch.bfloat16 "
     "(argument 'out_dtype')"),
    ({"out_dtype": FP8}, ValueError,
     "expected out_scale with torch.float8_e4m3fn outputs, got none (argument 'out_scale')"),
    ({"out_dtype": FP8, "out_scale": torch.tensor(1.0, dtype=torch.float64)}, TypeError,
     "expected out_scale of dtype torch.float32, got torch.float64 (argument 'out_scale')"),
    ({"out_dtype": FP8, "out_scale": torch.ones(1)}, ValueError,
     "expected out_scale of shape [], got [1] (argument 'out_scale')"),
]  # fmt: skip
OUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"out": torch.zeros(M, N, dtype=torch.int32)}, TypeError,
     f"expected out of dtype {OUT_DTYPES}, got torch.int32 (argument 'out')"),
    ({"out_scale": torch.tensor(1.0)}, TypeError,
     "expected out of dtype torch.float8_e4m3fn with out_scale, got torch.bfloat16 "
     "(argument 'out')"),
    ({"out": torch.zeros(M, N, dtype=FP8)}, ValueError,
     "expected out_scale with torch.float8_e4m3fn outputs, got none (argument 'out_scale')"),
    ({"out": torch.zeros(M, N + 1)}, ValueError,
     "expected out of shape [3, 100], got [3, 101] (argument 'out')"),
    ({"out": strided(M, N)}, ValueError,
     "expected contiguous out, got strides [200, 2] (argument 'out')"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "message"), [*GEMM, *OUT_DTYPE])
def test_gemm_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(
        ValueError, match=f"^{re.escape('wlib::int4fp8_gemm: ' + message)}$"
    ) as error:
        torch.ops.wlib.int4fp8_gemm(**gemm(**changed))
    assert type(wlib.errors.typed_error(error.value)) is kind


@pytest.mark.parametrize(("changed", "kind", "message"), [*GEMM, *OUT])
def test_gemm_out_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    out = torch.full((M, N), 7.0, dtype=torch.bfloat16)
    arguments = gemm(**{"out": out} | changed)
    with pytest.raises(
        ValueError, match=f"^{re.escape('wlib::int4fp8_gemm: ' + message)}$"
    ) as error:
        torch.ops.wlib.int4fp8_gemm.out(**arguments)
    assert type(wlib.errors.typed_error(error.value)) is kind
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shift", [-N, 0, 1])
def test_gemm_out_refuses_a_residual_that_overlaps(shift: int, dtype: torch.dtype) -> None:
    memory = torch.zeros(4 * M * N, dtype=torch.float16)
    out = memory[N : N + M * N].view(M, N)
    residual = memory.view(dtype)[(N + shift) * 2 // dtype.itemsize :][: M * N].view(M, N)
    message = "expected residual to be out itself or to lie apart from it, got tensors that overlap"
    arguments = gemm(out=out, residual=residual)
    if residual.data_ptr() == out.data_ptr() and residual.dtype == out.dtype:
        torch.ops.wlib.int4fp8_gemm.out(**arguments)
    else:
        with pytest.raises(ValueError, match=message):
            torch.ops.wlib.int4fp8_gemm.out(**arguments)


PYTHON: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # the functional API
    (lambda: wlib.fp8_quantize(torch.zeros(3, 4, dtype=torch.float64)), TypeError,
     f"wlib::fp8_quantize: expected x of dtype {DTYPES}, got torch.float64 (argument 'x')"),
    (lambda: wlib.fp8_quantize(torch.tensor(1.0)), ValueError,
     "wlib::fp8_quantize: expected x of at least one dimension, got a scalar (argument 'x')"),
    (lambda: wlib.fp8_quantize(torch.zeros(1, 4).expand(2**31, 4)), ValueError,
     "wlib::fp8_quantize: expected x of fewer than 2^31 rows, got [2147483648, 4] (argument 'x')"),
    (lambda: wlib.fp8_quantize(torch.zeros(4, 3).T), ValueError,
     "wlib::fp8_quantize: expected x with unit stride in the last dimension and rows at one "
     "distance; call .contiguous(), got shape [3, 4] with strides [1, 3] (argument 'x')"),
    (lambda: wlib.fp8_quantize(torch.zeros(0, 2**30)), ValueError,
     "wlib::fp8_quantize: expected x of fewer than 2^30 columns, got 1073741824 (argument 'x')"),
    *((lambda size=size: wlib.fp8_quantize(torch.zeros(3, 192), sums_group=size), ValueError,
       "wlib::fp8_quantize: expected sums_group of 32, 64, a multiple of 128 or k itself, dividing "
       f"k=192 (a multiple of 32), got {size} (argument 'sums_group')") for size in (0, 16, 128)),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4, dtype=torch.int8), torch.ones(4)),
     TypeError, f"wlib::rms_norm_fp8_quantize: expected x of dtype {DTYPES}, got torch.int8 "
     "(argument 'x')"),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(4, dtype=torch.float16)),
     TypeError, "wlib::rms_norm_fp8_quantize: expected weight of dtype torch.float32 or x's "
     "torch.float32, got torch.float16 (argument 'weight')"),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(3)), ValueError,
     "wlib::rms_norm_fp8_quantize: expected weight of shape [4], got [3] (argument 'weight')"),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), strided(4)), ValueError,
     "wlib::rms_norm_fp8_quantize: expected contiguous weight, got strides [2] "
     "(argument 'weight')"),
    *((lambda eps=eps: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(4), float(eps)),
       ValueError, f"wlib::rms_norm_fp8_quantize: expected eps of at least 0 and finite, got {eps} "
       "(argument 'eps')") for eps in ("-1.000000", "inf", "nan")),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(4),
                                        residual=torch.zeros(3, 4).half()), TypeError,
     "wlib::rms_norm_fp8_quantize: expected residual of dtype torch.float32, got torch.float16 "
     "(argument 'residual')"),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(4),
                                        residual=torch.zeros(4)), ValueError,
     "wlib::rms_norm_fp8_quantize: expected residual of shape [3, 4], got [4] "
     "(argument 'residual')"),
    (lambda: wlib.rms_norm_fp8_quantize(torch.zeros(3, 4), torch.ones(4), residual=strided(3, 4)),
     ValueError, "wlib::rms_norm_fp8_quantize: expected residual with unit stride in the last "
     "dimension and rows at one distance; call .contiguous(), got shape [3, 4] with strides [8, 2] "
     "(argument 'residual')"),
    (lambda: wlib.silu_mul_fp8_quantize(torch.zeros(3, 5)), ValueError,
     "wlib::silu_mul_fp8_quantize: expected gate_up of an even number of columns, got 5 "
     "(argument 'gate_up')"),
    (lambda: wlib.silu_mul_fp8_quantize(torch.zeros(3, 4, dtype=torch.float64)), TypeError,
     f"wlib::silu_mul_fp8_quantize: expected gate_up of dtype {DTYPES}, got torch.float64 "
     "(argument 'gate_up')"),
    (lambda: wlib.fp8_group_sums(torch.zeros(3, 64), 32), TypeError,
     "wlib::fp8_group_sums: expected xq of dtype torch.float8_e4m3fn, got torch.float32 "
     "(argument 'xq')"),
    (lambda: wlib.fp8_group_sums(torch.zeros((), dtype=FP8), 32), ValueError,
     "wlib::fp8_group_sums: expected xq of at least one dimension, got a scalar (argument 'xq')"),
    (lambda: wlib.fp8_group_sums(torch.zeros(64, 3, dtype=FP8).T, 32), ValueError,
     "wlib::fp8_group_sums: expected xq with unit stride in the last dimension and rows at one "
     "distance; call .contiguous(), got shape [3, 64] with strides [1, 3] (argument 'xq')"),
    *((lambda size=size: wlib.fp8_group_sums(torch.zeros(3, 192, dtype=FP8), size), ValueError,
       f"wlib::fp8_group_sums: expected {GROUPS} k=192 (a multiple of 32), got {size} "
       "(argument 'group_size')") for size in (0, -32, 16, 96, 128, 384)),
    (lambda: wlib.int4fp8_gemm(torch.zeros(3, 255, dtype=FP8), weight().pack(), torch.ones(3)),
     ValueError, "wlib::int4fp8_gemm: expected x of shape [*, 256] to match k=256, got [3, 255] "
     "(argument 'x')"),
    (lambda: wlib.int4fp8_gemm(torch.zeros(3, 256), weight().pack(), torch.ones(3)), TypeError,
     "wlib::int4fp8_gemm: expected x of dtype torch.float8_e4m3fn, got torch.float32 "
     "(argument 'x')"),
    (lambda: wlib.int4fp8_gemm(torch.zeros(3, 256, dtype=FP8), weight().pack(), torch.ones(2),
                               out=torch.zeros(3, 100)), ValueError,
     "wlib::int4fp8_gemm: expected x_scale of shape [3], got [2] (argument 'x_scale')"),
    (lambda: wlib.int4fp8_gemm(torch.zeros(3, 256, dtype=FP8), weight(), torch.ones(3)), TypeError,
     "wlib.int4fp8_gemm: expected p to be a PackedInt4Weight, got Int4Weight (argument 'p')"),
    # Int4Weight
    (lambda: weight(codes=torch.zeros(N, K // 2, dtype=torch.int8)), TypeError,
     "wlib.Int4Weight: expected codes of dtype torch.uint8, got torch.int8 (argument 'codes')"),
    (lambda: weight(codes=[1, 2]), TypeError,
     "wlib.Int4Weight: expected codes to be a tensor, got list (argument 'codes')"),
    (lambda: weight(codes=torch.zeros(0, 4, dtype=torch.uint8)), ValueError,
     "wlib.Int4Weight: expected codes of shape [N, K/2], got [0, 4] (argument 'codes')"),
    (lambda: weight(codes=torch.zeros(4, dtype=torch.uint8)), ValueError,
     "wlib.Int4Weight: expected codes of shape [N, K/2], got [4] (argument 'codes')"),
    (lambda: weight(group_scale=torch.ones(N, 2)), TypeError,
     "wlib.Int4Weight: expected group_scale of dtype torch.bfloat16, got torch.float32 "
     "(argument 'group_scale')"),
    *((lambda shape=shape: weight(group_scale=torch.ones(shape, dtype=torch.bfloat16)), ValueError,
       f"wlib.Int4Weight: expected group_scale of shape [100, K/G] with K=256, got {list(shape)} "
       "(argument 'group_scale')") for shape in ((N,), (99, 2), (N, 3), (N, 0))),
    (lambda: weight(group_scale=torch.ones(N, 16, dtype=torch.bfloat16)), ValueError,
     f"wlib.Int4Weight: expected {GROUPS} k=256 (a multiple of 32), got 16 "
     "(argument 'group_size')"),
    (lambda: weight(zero_point=torch.zeros(N, 2, dtype=torch.int8)), TypeError,
     "wlib.Int4Weight: expected zero_point of dtype torch.float32 or torch.float16 or "
     "torch.bfloat16, got torch.int8 (argument 'zero_point')"),
    (lambda: weight(zero_point=torch.zeros(N, 1)), ValueError,
     "wlib.Int4Weight: expected zero_point of shape [100, 2], got [100, 1] "
     "(argument 'zero_point')"),
    (lambda: weight(channel_scale=torch.ones(N, dtype=torch.bfloat16)), TypeError,
     "wlib.Int4Weight: expected channel_scale of dtype torch.float32, got torch.bfloat16 "
     "(argument 'channel_scale')"),
    (lambda: weight(channel_scale=torch.ones(N, 1)), ValueError,
     "wlib.Int4Weight: expected channel_scale of shape [100], got [100, 1] "
     "(argument 'channel_scale')"),
    (lambda: weight(channel_scale=torch.ones(N, device="meta")), ValueError,
     "wlib.Int4Weight: expected channel_scale on cpu, got meta "
     "(argument 'channel_scale')"),
    # Int4Weight.quantize
    (lambda: wlib.Int4Weight.quantize(torch.zeros(4, 128, dtype=torch.int32)), TypeError,
     "wlib.Int4Weight.quantize: expected w of dtype torch.float32 or torch.float16 or "
     "torch.bfloat16 or torch.float64, got torch.int32 (argument 'w')"),
    (lambda: wlib.Int4Weight.quantize(torch.zeros(2, 4, 128)), ValueError,
     "wlib.Int4Weight.quantize: expected w of shape [N, K], got [2, 4, 128] (argument 'w')"),
    (lambda: wlib.Int4Weight.quantize(torch.zeros(4, 192)), ValueError,
     f"wlib.Int4Weight.quantize: expected {GROUPS} k=192 (a multiple of 32), got 128 "
     "(argument 'group_size')"),
    (lambda: wlib.Int4Weight.quantize(torch.zeros(4, 100), 100), ValueError,
     f"wlib.Int4Weight.quantize: expected {GROUPS} k=100 (a multiple of 32), got 100 "
     "(argument 'group_size')"),
    *((lambda value=value: wlib.Int4Weight.quantize(torch.full((1, 128), value)), ValueError,
       "wlib.Int4Weight.quantize: expected w finite in float32, got 128 NaN or Inf (argument 'w')")
      for value in (torch.nan, -torch.inf)),
    # PackedInt4Weight
    (lambda: wlib.PackedInt4Weight(torch.zeros(1, 4480), 64, 128, 128), TypeError,
     "wlib.PackedInt4Weight: expected data of dtype torch.uint8, got torch.float32 "
     "(argument 'data')"),
    (lambda: wlib.PackedInt4Weight(torch.zeros(1, 4480, dtype=torch.uint8), 65, 128, 128),
     ValueError, "wlib.PackedInt4Weight: expected data of shape [2, 4480], got [1, 4480] "
     "(argument 'data')"),
    (lambda: wlib.PackedInt4Weight(torch.zeros(1, 4480, dtype=torch.uint8), 64, 128, 48),
     ValueError, f"wlib.PackedInt4Weight: expected {GROUPS} k=128 (a multiple of 32), "
     "got 48 (argument 'group_size')"),
    (lambda: wlib.PackedInt4Weight(torch.zeros(1, 4480, dtype=torch.uint8), 64, 128, 128,
                                   layout_version=9), ValueError,
     "wlib.PackedInt4Weight: expected layout_version 1, got 9 (argument 'layout_version')"),
    # modules
    (lambda: wlib.nn.Int4Fp8Linear(96, 8), ValueError,
     f"wlib.nn.Int4Fp8Linear: expected {GROUPS} k=96 (a multiple of 32), got 128 "
     "(argument 'group_size')"),
    (lambda: wlib.nn.Int4Fp8Linear.from_weight(weight(), torch.zeros(3)), ValueError,
     "wlib.nn.Int4Fp8Linear: expected bias of shape [100], got [3] (argument 'bias')"),
    (lambda: wlib.nn.Int4Fp8Linear.from_weight(weight(), torch.zeros(N, dtype=torch.int8)),
     TypeError, "wlib.nn.Int4Fp8Linear: expected bias of dtype torch.float32 or torch.float16 or "
     "torch.bfloat16, got torch.int8 (argument 'bias')"),
    (lambda: wlib.nn.Int4Fp8Linear(K, N)(torch.zeros(2, K - 1)), ValueError,
     "wlib::int4fp8_gemm: expected x of shape [*, 256] to match k=256, got [2, 255] "
     "(argument 'x')"),
    (lambda: wlib.nn.Int4Fp8Linear(K, N)(torch.zeros(2, K, dtype=torch.int8)), TypeError,
     f"wlib::fp8_quantize: expected x of dtype {DTYPES}, got torch.int8 (argument 'x')"),
    (lambda: wlib.nn.Int4Fp8Linear(K, N, group_size=256).load_state_dict(
        wlib.nn.Int4Fp8Linear(K, N).state_dict()), ValueError,
     "wlib.nn.Int4Fp8Linear: expected [layout_version, n, k, group_size, has_zero_point, "
     "has_channel_scale] = [1, 100, 256, 256, 0, 0], got [1, 100, 256, 128, 0, 0] "
     "(argument 'state_dict')"),
    (lambda: wlib.nn.Int4Fp8GateUp(wlib.nn.Int4Fp8Linear(K, 7)), ValueError,
     "wlib.nn.Int4Fp8GateUp: expected an even number of output features, got 7 (argument 'rows')"),
    (lambda: wlib.nn.Int4Fp8GateUp.from_linears(
        wlib.nn.Int4Fp8Linear(K, N), wlib.nn.Int4Fp8Linear(K, N, group_size=64)), ValueError,
     "wlib.Int4Weight.interleave: expected up with [n, k, group_size] = [100, 256, 128], got "
     "[100, 256, 64] (argument 'up')"),
    (lambda: wlib.nn.Int4Fp8GateUp.from_linears(
        wlib.nn.Int4Fp8Linear(K, N), wlib.nn.Int4Fp8Linear(K, N, has_k_permutation=True)),
     ValueError, "wlib.nn.Int4Fp8GateUp: expected up with the order of columns of gate, got "
     "another k_permutation (argument 'up')"),
    (lambda: wlib.nn.replace_linear(nn.Linear(K, N), wlib.nn.Int4Fp8Linear), ValueError,
     "replace_linear: a lone nn.Linear has no parent, use from_linear instead"),
    (lambda: wlib.nn.replace_linear(nn.Sequential(nn.Linear(33, 4)), wlib.nn.Int4Fp8Linear),
     ValueError, "replace_linear: name these layers in skip or change the options:\n  0: "
     f"wlib.Int4Weight.quantize: expected {GROUPS} k=33 (a multiple of 32), got 128 "
     "(argument 'group_size')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PYTHON)
def test_python_refuses(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as error:
        call()
    assert type(error.value) is kind


def test_a_device_without_a_kernel_is_not_implemented() -> None:
    message = "wlib::int4fp8_gemm: no kernel for sm_80 (rows: sm_90a)"
    error = wlib.errors.typed_error(ValueError(message))
    assert type(error) is NotImplementedError
    assert str(error) == message


@pytest.mark.gpu
@pytest.mark.parametrize(
    "argument", ["weight", "x_scale", "bias", "residual", "out_scale", "x_sums"]
)
def test_gemm_refuses_mixed_devices(argument: str) -> None:
    arguments = gemm(
        bias=torch.zeros(N),
        residual=torch.zeros(M, N),
        out_scale=torch.tensor(1.0),
        out_dtype=FP8,
        x_sums=torch.zeros(2, 4),
    )
    moved = {
        k: v.cuda() if isinstance(v, Tensor) and k != argument else v for k, v in arguments.items()
    }
    message = (
        f"wlib::int4fp8_gemm: expected {argument} on cuda:0 like x, got cpu (argument '{argument}')"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        torch.ops.wlib.int4fp8_gemm(**moved)


@pytest.mark.gpu
def test_gemm_refuses_misaligned_tensors_on_the_gpu() -> None:
    shifted = torch.zeros(2 * 8704 + 16, dtype=torch.uint8, device="cuda")[16:].view(2, 8704)
    arguments = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in gemm().items()}
    with pytest.raises(ValueError, match="expected weight at a 128-byte aligned address, got an "):
        torch.ops.wlib.int4fp8_gemm(**arguments | {"weight": shifted})
    shifted = torch.zeros(M * K + 4, dtype=torch.uint8, device="cuda")[4:].view(FP8).view(M, K)
    with pytest.raises(ValueError, match="expected x at a 16-byte aligned address, got an "):
        torch.ops.wlib.int4fp8_gemm(**arguments | {"x": shifted})
    repeated = arguments["x"][:1].expand(M, K)
    with pytest.raises(ValueError, match="a positive multiple of 16 elements apart, got 0"):
        torch.ops.wlib.int4fp8_gemm(**arguments | {"x": repeated})
