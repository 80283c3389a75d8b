"""Every refusal of the fp4 family: the class of the error and its whole message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import wlib
from test_errors import DTYPES, FP8, strided


def fp4(**changed: Any) -> Any:
    """Quantise [64, 128], except for `changed`."""
    return wlib.fp4_quantize(**{"x": torch.zeros(64, 128)} | changed)


def fp4_tensor(**changed: Any) -> wlib.FP4Tensor:
    """A packed matrix [4, 64], except for `changed`."""
    tensors: dict[str, Any] = {
        "format": "mxfp4",
        "codes": torch.zeros(4, 32, dtype=torch.uint8),
        "scales": torch.zeros(4, 2, dtype=torch.uint8),
    }
    return wlib.FP4Tensor(**tensors | changed)


def fp4_requantize(**changed: Any) -> Any:
    """Requantise [64, 64] by the op, except for `changed`."""
    arguments: dict[str, Any] = {
        "codes": torch.zeros(64, 32, dtype=torch.uint8),
        "scales": torch.zeros(64, 2, dtype=torch.uint8),
    }
    return torch.ops.wlib.fp4_requantize_t(**arguments | changed)


def fp4_matmul(**changed: Any) -> Any:
    """[4, 64] times [4, 64] by the op, except for `changed`."""
    arguments: dict[str, Any] = {
        **{name: torch.zeros(4, 32, dtype=torch.uint8) for name in "ab"},
        **{f"{name}_scale": torch.zeros(4, 2, dtype=torch.uint8) for name in "ab"},
    }
    return torch.ops.wlib.fp4_matmul(**arguments | changed)


ONE = torch.ones(())
NV_SCALES = torch.zeros(4, 4).to(FP8)
FP4: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (fp4, {"x": torch.zeros(64, 128, dtype=torch.float64)}, TypeError,
     f"::fp4_quantize: expected x of dtype {DTYPES}, got torch.float64 (argument 'x')"),
    (fp4, {"x": torch.zeros(2, 64, 128)}, ValueError,
     "::fp4_quantize: expected x of shape [R, C], got [2, 64, 128] (argument 'x')"),
    (fp4, {"x": strided(64, 128)}, ValueError,
     "::fp4_quantize: expected x with unit stride in the last dimension and rows at one distance; "
     "call .contiguous(), got shape [64, 128] with strides [256, 2] (argument 'x')"),
    (fp4, {"x": torch.zeros(64, 80)}, ValueError,
     "::fp4_quantize: expected columns in multiples of 32, got 80 (argument 'x')"),
    (fp4, {"x": torch.zeros(64, 80), "format": "nvfp4", "hadamard": 64}, ValueError,
     "::fp4_quantize: expected columns in multiples of 64, got 80 (argument 'x')"),
    (fp4, {"x": torch.zeros(40, 64), "axis": "both"}, ValueError,
     "::fp4_quantize: expected rows in multiples of 32, got 40 (argument 'x')"),
    (fp4, {"format": "fp4"}, ValueError,
     "::fp4_quantize: expected format to be one of 'mxfp4', 'nvfp4', got 'fp4' "
     "(argument 'format')"),
    (fp4, {"scale_rule": "amax"}, ValueError,
     "::fp4_quantize: expected scale_rule to be one of 'even', 'floor', 'quest', 'quest_floor', "
     "'three_quarters', got 'amax' (argument 'scale_rule')"),
    (fp4, {"scale_rule": "even", "format": "nvfp4"}, ValueError,
     "::fp4_quantize: expected scale_rule to be one of 'amax', 'four_over_six', got 'even' "
     "(argument 'scale_rule')"),
    (fp4, {"format": "nvfp4", "emit": ("carrier_e4m3",)}, ValueError,
     "::fp4_quantize: expected no carrier for nvfp4, got 'e4m3' (argument 'carrier')"),
    (fp4, {"window": 256}, ValueError,
     "::fp4_quantize: expected window of 0 to 255, got 256 (argument 'window')"),
    (fp4, {"window": 16, "emit": ("carrier_e4m3",)}, ValueError,
     "::fp4_quantize: expected window of 0 to 15, got 16 (argument 'window')"),
    (fp4, {"window": 15, "format": "nvfp4"}, ValueError,
     "::fp4_quantize: expected window 0 for nvfp4, got 15 (argument 'window')"),
    (fp4, {"hadamard": 48}, ValueError,
     "::fp4_quantize: expected hadamard of 16, 32, 64 or 128, got 48 (argument 'hadamard')"),
    (fp4, {"signs": torch.ones(32, dtype=torch.int8)}, ValueError,
     "::fp4_quantize: expected no signs without a rotation, got signs (argument 'signs')"),
    (fp4, {"hadamard": 32, "signs": torch.ones(32)}, TypeError,
     "::fp4_quantize: expected signs of dtype torch.int8, got torch.float32 (argument 'signs')"),
    (fp4, {"hadamard": 32, "signs": torch.ones(16, dtype=torch.int8)}, ValueError,
     "::fp4_quantize: expected signs of shape [32], got [16] (argument 'signs')"),
    (fp4, {"hadamard": 32, "signs": strided(32, dtype=torch.int8)}, ValueError,
     "::fp4_quantize: expected contiguous signs, got strides [2] (argument 'signs')"),
    (fp4, {"global_scale": ONE}, ValueError,
     "::fp4_quantize: expected no global_scale for mxfp4, got global_scale "
     "(argument 'global_scale')"),
    (fp4, {"global_scale": ONE.double(), "format": "nvfp4"}, TypeError,
     "::fp4_quantize: expected global_scale of dtype torch.float32, got torch.float64 "
     "(argument 'global_scale')"),
    (fp4, {"global_scale": torch.ones(1), "format": "nvfp4"}, ValueError,
     "::fp4_quantize: expected global_scale of shape [], got [1] (argument 'global_scale')"),
    (fp4, {"rounding": "up"}, ValueError,
     ".fp4_quantize: expected rounding to be 'nearest', got 'up' (argument 'rounding')"),
    (fp4, {"seed": ONE}, ValueError,
     ".fp4_quantize: expected no seed for rounding 'nearest', got a seed (argument 'seed')"),
    (fp4, {"axis": 2}, ValueError,
     ".fp4_quantize: expected axis of -1, 0 or 'both', got 2 (argument 'axis')"),
    *((fp4, {"emit": emit}, ValueError,
       ".fp4_quantize: expected emit to hold some of 'fp4', 'carrier_e4m3', 'carrier_e5m2', "
       f"got {emit!r} (argument 'emit')") for emit in ((), "fp4", ("fp8",))),
    (fp4, {"emit": ("carrier_e4m3", "carrier_e5m2")}, ValueError,
     ".fp4_quantize: expected emit with at most one carrier, "
     "got ('carrier_e4m3', 'carrier_e5m2') (argument 'emit')"),
    (fp4, {"swizzle": "32x4"}, ValueError,
     ".fp4_quantize: expected swizzle to be one of 'none', '128x4', got '32x4' "
     "(argument 'swizzle')"),
    (torch.ops.wlib.fp4_quantize, {"x": torch.zeros(1, 32), "packed": False}, ValueError,
     "::fp4_quantize: expected packed codes or a carrier, got neither (argument 'packed')"),
    (torch.ops.wlib.fp4_quantize, {"x": torch.zeros(1, 32), "axis": "depth"}, ValueError,
     "::fp4_quantize: expected axis to be one of 'rows', 'columns', 'both', got 'depth' "
     "(argument 'axis')"),
    (torch.ops.wlib.fp4_quantize, {"x": torch.zeros(1, 32), "carrier": "e3m4"}, ValueError,
     "::fp4_quantize: expected carrier to be one of 'none', 'e4m3', 'e5m2', got 'e3m4' "
     "(argument 'carrier')"),
    (fp4_requantize, {"codes": torch.zeros(64, 32)}, TypeError,
     "::fp4_requantize_t: expected codes of dtype torch.uint8, got torch.float32 "
     "(argument 'codes')"),
    (fp4_requantize, {"codes": strided(64, 32, dtype=torch.uint8)}, ValueError,
     "::fp4_requantize_t: expected contiguous codes, got strides [64, 2] (argument 'codes')"),
    (fp4_requantize, {"codes": torch.zeros(32, dtype=torch.uint8)}, ValueError,
     "::fp4_requantize_t: expected codes of shape [R, C], got [32] (argument 'codes')"),
    (fp4_requantize, {"scales": torch.zeros(64, 2)}, TypeError,
     "::fp4_requantize_t: expected scales of dtype torch.uint8, got torch.float32 "
     "(argument 'scales')"),
    (fp4_requantize, {"scales": torch.zeros(64, 3, dtype=torch.uint8)}, ValueError,
     "::fp4_requantize_t: expected scales of shape [64, 2], got [64, 3] (argument 'scales')"),
    (fp4_requantize, {"hadamard": 128}, ValueError,
     "::fp4_requantize_t: expected rows in multiples of 128, got 64 (argument 'codes')"),
    (wlib.fp4_requantize_t, {"q": fp4_tensor(codes=None, carrier=torch.zeros(4, 64).to(FP8),
                                             row_scale=torch.ones(4))}, ValueError,
     ".fp4_requantize_t: expected q with codes and scales in row-major order, got another "
     "(argument 'q')"),
    (fp4_matmul, {"a": torch.zeros(4, 32)}, TypeError,
     "::fp4_matmul: expected a of dtype torch.uint8, torch.float8_e4m3fn or torch.float8_e5m2, "
     "got torch.float32 (argument 'a')"),
    (fp4_matmul, {"b": torch.zeros(32, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected b of shape [R, C], got [32] (argument 'b')"),
    (fp4_matmul, {"b": strided(4, 32, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected contiguous b, got strides [64, 2] (argument 'b')"),
    (fp4_matmul, {"b": torch.zeros(4, 24, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected rows in multiples of 32, got 48 (argument 'b')"),
    (fp4_matmul, {"b": torch.zeros(4, 16, dtype=torch.uint8),
                  "b_scale": torch.zeros(4, 1, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected rows of 64 values like a, got 32 (argument 'b')"),
    (fp4_matmul, {"a_scale": torch.zeros(4, 2)}, TypeError,
     "::fp4_matmul: expected a_scale of dtype torch.uint8, got torch.float32 "
     "(argument 'a_scale')"),
    (fp4_matmul, {"a_scale": torch.zeros(4, 3, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected a_scale of shape [4, 2], got [4, 3] (argument 'a_scale')"),
    (fp4_matmul, {"a": torch.zeros(4, 64).to(FP8), "a_scale": torch.ones(4), "a_global": ONE},
     ValueError, "::fp4_matmul: expected no global scale for a carrier, got a_global "
     "(argument 'a_global')"),
    (fp4_matmul, {"a_global": ONE.double(), "a_scale": NV_SCALES}, TypeError,
     "::fp4_matmul: expected a_global of dtype torch.float32, got torch.float64 "
     "(argument 'a_global')"),
    (fp4_matmul, {"mode": "fp8"}, ValueError,
     "::fp4_matmul: expected mode to be one of 'fold8', 'bf16', 'exact32', got 'fp8' "
     "(argument 'mode')"),
    (fp4_matmul, {"a_global": ONE, "a_scale": NV_SCALES}, ValueError,
     "::fp4_matmul: expected mode 'bf16' for nvfp4, got 'fold8' (argument 'mode')"),
    (fp4_matmul, {"a_global": ONE, "a_scale": NV_SCALES, "mode": "exact32"}, ValueError,
     "::fp4_matmul: expected packed mxfp4 for mode 'exact32', got nvfp4 (argument 'mode')"),
    (fp4_matmul, {"out_dtype": torch.float64}, TypeError,
     f"::fp4_matmul: expected out_dtype of dtype {DTYPES}, got torch.float64 "
     "(argument 'out_dtype')"),
    (wlib.fp4_matmul, {"a": fp4_tensor(), "b": torch.zeros(4, 64)}, TypeError,
     ".fp4_matmul: expected b to be an FP4Tensor, got Tensor (argument 'b')"),
    (wlib.fp4_matmul, {"a": fp4_tensor(), "b": fp4_tensor(
        scales=torch.zeros(128, 4, dtype=torch.uint8), swizzled=True)}, ValueError,
     ".fp4_matmul: expected b with scales in row-major order, got the 128x4 order (argument 'b')"),
    (fp4_tensor, {"format": "fp4"}, ValueError,
     ".FP4Tensor: expected format to be one of 'mxfp4', 'nvfp4', got 'fp4' (argument 'format')"),
    (fp4_tensor, {"codes": None}, ValueError,
     ".FP4Tensor: expected codes or a carrier, got neither (argument 'codes')"),
    (fp4_tensor, {"codes": torch.zeros(4, 24, dtype=torch.uint8)}, ValueError,
     ".FP4Tensor: expected codes of shape [R, C/2] with C a multiple of 32, got [4, 24] "
     "(argument 'codes')"),
    (fp4_tensor, {"scales": None}, TypeError,
     ".FP4Tensor: expected scales to be a tensor, got NoneType (argument 'scales')"),
    (fp4_tensor, {"scales": torch.zeros(4, 2, device="meta", dtype=torch.uint8)}, ValueError,
     ".FP4Tensor: expected scales on cpu, got meta (argument 'scales')"),
    (wlib.hadamard, {"x": torch.zeros(4, 64), "size": 8}, ValueError,
     "::hadamard: expected size of 16, 32, 64 or 128, got 8 (argument 'size')"),
    (wlib.hadamard, {"x": torch.zeros(4, 40), "size": 16}, ValueError,
     "::hadamard: expected a last dimension in multiples of 16, got 40 (argument 'x')"),
    (wlib.hadamard, {"x": torch.zeros(()), "size": 16}, ValueError,
     "::hadamard: expected x of at least one dimension, got a scalar (argument 'x')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "kind", "message"), FP4)
def test_fp4_refuses(
    call: Callable[..., Any], arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape('wlib' + message)}$") as error:
        call(**arguments)
    refusal = error.value  # the bare ops throw ValueError only
    assert (
        type(wlib.errors.typed_error(refusal) if type(refusal) is ValueError else refusal) is kind
    )
