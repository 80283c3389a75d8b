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


def fp4_block_scaled(**changed: Any) -> Any:
    """[4, 64] times [8, 64] by the op, scales in the 128x4 order, except for `changed`."""
    arguments: dict[str, Any] = {
        "mode": "block_scaled",
        "a": torch.zeros(4, 32, dtype=torch.uint8),
        "b": torch.zeros(8, 32, dtype=torch.uint8),
        **{f"{name}_scale": torch.zeros(128, 4, dtype=torch.uint8) for name in "ab"},
    }
    return torch.ops.wlib.fp4_matmul(**arguments | changed)


def fp4_linear(**changed: Any) -> Any:
    """[4, 64] through a layer [8, 64], except for `changed`."""
    arguments: dict[str, Any] = {"x": torch.zeros(4, 64), "w": torch.zeros(8, 64),
                                 "state": torch.zeros(2, dtype=torch.int64)}  # fmt: skip
    return wlib.fp4_linear(**arguments | changed)


ONE = torch.ones(())
FLOATS = "torch.float32 or torch.float16 or torch.bfloat16"
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
     "::fp4_quantize: expected rounding to be one of 'nearest', 'stochastic', 'ms_eden', got 'up' "
     "(argument 'rounding')"),
    (fp4, {"seed": 1}, ValueError,
     "::fp4_quantize: expected no seed for rounding 'nearest', got a seed (argument 'seed')"),
    (fp4, {"rounding": "stochastic"}, ValueError,
     "::fp4_quantize: expected a seed for rounding 'stochastic', got none (argument 'seed')"),
    (fp4, {"rounding": "stochastic", "seed": ONE}, TypeError,
     "::fp4_quantize: expected seed of dtype torch.int64, got torch.float32 (argument 'seed')"),
    (fp4, {"rounding": "stochastic", "seed": torch.zeros(3, dtype=torch.int64)}, ValueError,
     "::fp4_quantize: expected seed of shape [] or [2], got [3] (argument 'seed')"),
    (fp4, {"rounding": "stochastic", "seed": strided(2, dtype=torch.int64)}, ValueError,
     "::fp4_quantize: expected contiguous seed, got strides [2] (argument 'seed')"),
    *((fp4, {"rounding": "stochastic", "seed": 1, "offset": offset}, ValueError,
       f"::fp4_quantize: expected offset of 0 to 1073741823, got {offset} (argument 'offset')")
      for offset in (-1, 1 << 30)),
    (fp4, {"rounding": "ms_eden", "seed": 1}, ValueError,
     "::fp4_quantize: expected scale_rule 'amax' of nvfp4 for rounding 'ms_eden', got 'even' "
     "(argument 'rounding')"),
    (fp4, {"rounding": "stochastic", "seed": 1, "format": "nvfp4",
           "scale_rule": "four_over_six"}, ValueError,
     "::fp4_quantize: expected rounding 'nearest' for 'four_over_six', got 'stochastic' "
     "(argument 'rounding')"),
    (fp4, {"square": True}, ValueError,
     "::fp4_quantize: expected square blocks with 'amax' of nvfp4 and rounding 'nearest' only, "
     "got 'even', 'nearest' (argument 'square')"),
    (fp4, {"square": True, "format": "nvfp4", "rounding": "ms_eden", "seed": 1}, ValueError,
     "::fp4_quantize: expected square blocks with 'amax' of nvfp4 and rounding 'nearest' only, "
     "got 'amax', 'ms_eden' (argument 'square')"),
    (wlib.fp4_signs, {"seed": ONE, "size": 32}, TypeError,
     "::fp4_signs: expected seed of dtype torch.int64, got torch.float32 (argument 'seed')"),
    (wlib.fp4_signs, {"seed": 1, "size": 8}, ValueError,
     "::fp4_signs: expected size of 16, 32, 64 or 128, got 8 (argument 'size')"),
    (fp4_linear, {"x": torch.zeros(4, 64, dtype=torch.int32)}, TypeError,
     f".fp4_linear: expected x of dtype {FLOATS}, got torch.int32 (argument 'x')"),
    (fp4_linear, {"w": torch.zeros(8, 64).double()}, TypeError,
     f".fp4_linear: expected w of dtype {FLOATS}, got torch.float64 (argument 'w')"),
    (fp4_linear, {"w": torch.zeros(64)}, ValueError,
     ".fp4_linear: expected w of shape [N, K], got [64] (argument 'w')"),
    (fp4_linear, {"x": torch.zeros(4, 32)}, ValueError,
     ".fp4_linear: expected x of shape [..., 64], got [4, 32] (argument 'x')"),
    (fp4_linear, {"w": torch.zeros(8, 64, device="meta")}, ValueError,
     ".fp4_linear: expected w on cpu, got meta (argument 'w')"),
    (fp4_linear, {"bias": torch.zeros(7)}, ValueError,
     ".fp4_linear: expected bias of shape [8], got [7] (argument 'bias')"),
    (fp4_linear, {"bias": torch.zeros(8).double()}, TypeError,
     f".fp4_linear: expected bias of dtype {FLOATS}, got torch.float64 (argument 'bias')"),
    (fp4_linear, {"state": None}, ValueError,
     ".fp4_linear: expected a state for recipe 'wlib', got None (argument 'state')"),
    (fp4_linear, {"state": torch.zeros(2)}, TypeError,
     ".fp4_linear: expected state of dtype torch.int64, got torch.float32 (argument 'state')"),
    (fp4_linear, {"state": torch.tensor(1)}, ValueError,
     ".fp4_linear: expected state of shape [2], got [] (argument 'state')"),
    (fp4_linear, {"recipe": "quartet3"}, ValueError,
     ".FP4Recipe: expected name to be one of 'wlib', 'quartet', 'quartet_v1', 'quartet2', "
     "'nvidia', got 'quartet3' (argument 'name')"),
    (wlib.FP4Recipe, {"format": "fp4"}, ValueError,
     ".FP4Recipe: expected format to be one of 'mxfp4', 'nvfp4', got 'fp4' (argument 'format')"),
    (wlib.FP4Recipe, {"wgrad": "int8"}, ValueError,
     ".FP4Recipe: expected wgrad to be one of 'fp4', 'fp8', 'bf16', got 'int8' "
     "(argument 'wgrad')"),
    (wlib.FP4Recipe, {"scale_rule": "amax"}, ValueError,
     ".FP4Recipe: expected scale_rule to be one of 'even', 'floor', 'quest', 'quest_floor', "
     "'three_quarters', got 'amax' (argument 'scale_rule')"),
    (wlib.FP4Recipe, {"dgrad_hadamard": 48}, ValueError,
     ".FP4Recipe: expected dgrad_hadamard to be one of 0, 16, 32, 64, 128, got 48 "
     "(argument 'dgrad_hadamard')"),
    (wlib.FP4Recipe, {"grad_rounding": "ms_eden"}, ValueError,
     ".FP4Recipe: expected 'amax' of nvfp4 for 'ms_eden', got even (argument 'grad_rounding')"),
    (wlib.FP4Recipe, {"format": "nvfp4", "scale_rule": "amax", "grad_rounding": "stochastic",
                      "grad_scale_rule": "four_over_six"}, ValueError,
     ".FP4Recipe: expected 'amax' for 'stochastic', got 'four_over_six' "
     "(argument 'grad_scale_rule')"),
    (wlib.FP4Recipe, {"square_weight": True}, ValueError,
     ".FP4Recipe: expected 'amax' of nvfp4 for square blocks, got even "
     "(argument 'square_weight')"),
    (wlib.FP4Recipe, {"square_weight": True, "format": "nvfp4", "scale_rule": "amax",
                      "grad_scale_rule": "amax"}, ValueError,
     ".FP4Recipe: expected no rotation and no rounding of W, got square blocks "
     "(argument 'square_weight')"),
    (wlib.FP4Recipe, {"mask": True, "requantize_x": False}, ValueError,
     ".FP4Recipe: expected requantize_x with a mask, got False (argument 'requantize_x')"),
    (wlib.FP4Recipe, {"requantize_x": False}, ValueError,
     ".FP4Recipe: expected no fixed rotation and forward 'fp4', got another "
     "(argument 'requantize_x')"),
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
     "::fp4_matmul: expected mode to be one of 'fold8', 'bf16', 'exact32', "
     "'block_scaled', got 'fp8' "
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
    (wlib.fp4_matmul, {"a": fp4_tensor(), "b": fp4_tensor(), "mode": "block_scaled"}, ValueError,
     ".fp4_matmul: expected a with scales in the 128x4 order, got row-major order (argument 'a')"),
    (fp4_block_scaled, {"a_scale": torch.zeros(4, 2, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected a_scale of shape [128, 4], got [4, 2] (argument 'a_scale')"),
    (fp4_block_scaled, {"a": torch.zeros(4, 64).to(FP8), "a_scale": torch.ones(4)}, ValueError,
     "::fp4_matmul: expected packed operands of one format for mode 'block_scaled', got a carrier "
     "(argument 'mode')"),
    (fp4_block_scaled, {"b_global": ONE, "b_scale": torch.zeros(128, 4).to(FP8)}, ValueError,
     "::fp4_matmul: expected packed operands of one format for mode 'block_scaled', got mxfp4 and "
     "nvfp4 (argument 'mode')"),
    (fp4_block_scaled, {"a": torch.zeros(4, 24, dtype=torch.uint8), "a_global": ONE,
                        "a_scale": torch.zeros(128, 4).to(FP8),
                        "b": torch.zeros(8, 24, dtype=torch.uint8), "b_global": ONE,
                        "b_scale": torch.zeros(128, 4).to(FP8)}, ValueError,
     "::fp4_matmul: expected rows in multiples of 32 for mode 'block_scaled', got 48 "
     "(argument 'a')"),
    (fp4_block_scaled, {"b": torch.zeros(4, 32, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected b with rows in multiples of 8 for mode 'block_scaled' and this "
     "out_dtype, got 4 (argument 'b')"),
    (fp4_block_scaled, {"b": torch.zeros(6, 32, dtype=torch.uint8), "out_dtype": torch.float32},
     ValueError, "::fp4_matmul: expected b with rows in multiples of 4 for mode 'block_scaled' and "
     "this out_dtype, got 6 (argument 'b')"),
    (fp4_block_scaled, {"a": torch.zeros(0, 1 << 30, dtype=torch.uint8),
                        "a_scale": torch.zeros(0, 1 << 26, dtype=torch.uint8),
                        "b": torch.zeros(0, 1 << 30, dtype=torch.uint8),
                        "b_scale": torch.zeros(0, 1 << 26, dtype=torch.uint8)}, ValueError,
     "::fp4_matmul: expected sizes below 2^31 for mode 'block_scaled', got 2147483648 "
     "(argument 'a')"),
    (fp4_block_scaled, {"b": torch.zeros(8 * 32 + 8, dtype=torch.uint8)[8:].view(8, 32)},
     ValueError, "::fp4_matmul: expected b at a 16-byte aligned address, got an address 8 bytes "
     "off (argument 'b')"),
    (fp4_block_scaled, {"a_scale": torch.zeros(516, dtype=torch.uint8)[4:].view(128, 4)},
     ValueError, "::fp4_matmul: expected a_scale at a 16-byte aligned address, got an address 4 "
     "bytes off (argument 'a_scale')"),
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
