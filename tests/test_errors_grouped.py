"""Every refusal of the grouped GEMM, its packed stacks and its module."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import wlib
from wlib.nn import Int4Fp8Experts

FP8 = torch.float8_e4m3fn
E, T, N, K = 3, 5, 100, 256


def grouped(**changed: Any) -> dict[str, Any]:
    """Arguments of the op that fit together, 5 tokens x 3 experts [100, 256], except `changed`."""
    arguments: dict[str, Any] = {
        "x": torch.zeros(T, K, dtype=FP8),
        "weight": torch.zeros(E, 2, 8704, dtype=torch.uint8),
        "x_scale": torch.ones(T),
        "expert_offsets": torch.tensor([0, 2, 2, 5], dtype=torch.int32),
        "n": N,
        "group_size": 128,
    }
    return arguments | changed


def offsets(*values: int) -> dict[str, Any]:
    return {"expert_offsets": torch.tensor(values)}


# What torch.ops.wlib.int4fp8_gemm_grouped refuses beyond what int4fp8_gemm does, or otherwise.
OP: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(T, K)}, TypeError,
     "expected x of dtype torch.float8_e4m3fn, got torch.float32 (argument 'x')"),
    ({"x": torch.zeros(1, T, K, dtype=FP8)}, ValueError,
     "expected x of shape [T, K], got [1, 5, 256] (argument 'x')"),
    ({"expert_offsets": torch.zeros(E + 1)}, TypeError,
     "expected expert_offsets of dtype torch.int32 or torch.int64, got torch.float32 "
     "(argument 'expert_offsets')"),
    ({"expert_offsets": torch.zeros(1, E + 1, dtype=torch.int64)}, ValueError,
     "expected expert_offsets of shape [E + 1] for 1 to 512 experts, got [1, 4] "
     "(argument 'expert_offsets')"),
    ({"expert_offsets": torch.zeros(1, dtype=torch.int64)}, ValueError,
     "expected expert_offsets of shape [E + 1] for 1 to 512 experts, got [1] "
     "(argument 'expert_offsets')"),
    ({"expert_offsets": torch.zeros(514, dtype=torch.int64)}, ValueError,
     "expected expert_offsets of shape [E + 1] for 1 to 512 experts, got [514] "
     "(argument 'expert_offsets')"),
    ({"expert_offsets": torch.tensor([0, 9, 2, 9, 2, 9, 5])[::2]}, ValueError,
     "expected contiguous expert_offsets, got strides [2] (argument 'expert_offsets')"),
    (offsets(1, 2, 2, 5), ValueError,
     "expected expert_offsets that rise from 0 to T=5, got 1 at 0 (argument 'expert_offsets')"),
    (offsets(0, 3, 2, 5), ValueError,
     "expected expert_offsets that rise from 0 to T=5, got 2 at 2 (argument 'expert_offsets')"),
    (offsets(0, 2, 2, 4), ValueError,
     "expected expert_offsets that rise from 0 to T=5, got 4 at 3 (argument 'expert_offsets')"),
    (offsets(0, 2, 6, 5), ValueError,
     "expected expert_offsets that rise from 0 to T=5, got 6 at 2 (argument 'expert_offsets')"),
    ({"weight": torch.zeros(2, 8704, dtype=torch.uint8)}, ValueError,
     "expected weight of shape [3, 2, 8704] (or 9216 columns with zero points) to match n=100, "
     "k=256, group_size=128, got [2, 8704] (argument 'weight')"),
    ({"weight": torch.zeros(2, 2, 8704, dtype=torch.uint8)}, ValueError,
     "expected weight of shape [3, 2, 8704] (or 9216 columns with zero points) to match n=100, "
     "k=256, group_size=128, got [2, 2, 8704] (argument 'weight')"),
    ({"weight": torch.zeros(E, 2, 8704)}, TypeError,
     "expected weight of dtype torch.uint8, got torch.float32 (argument 'weight')"),
    ({"bias": torch.zeros(N)}, ValueError,
     "expected bias of shape [3, 100], got [100] (argument 'bias')"),
    ({"residual": torch.zeros(T, N + 1)}, ValueError,
     "expected residual of shape [5, 100], got [5, 101] (argument 'residual')"),
    ({"x_sums": torch.zeros(2, 4)}, ValueError,
     "expected x_sums of shape [2, 8], got [2, 4] (argument 'x_sums')"),
    ({"activation": "gelu"}, ValueError,
     "expected activation 'none' or 'silu_mul', got 'gelu' (argument 'activation')"),
    ({"layout_version": 2}, ValueError,
     "expected layout_version 1 (pack the weight with this version of wlib), got 2 "
     "(argument 'layout_version')"),
]  # fmt: skip


def check_refusal(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(
        ValueError, match=f"^wlib::int4fp8_gemm_grouped: {re.escape(message)}$"
    ) as e:
        call()
    assert type(wlib.errors.typed_error(e.value)) is kind


@pytest.mark.parametrize(("changed", "kind", "message"), OP)
def test_op_refuses(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    check_refusal(lambda: torch.ops.wlib.int4fp8_gemm_grouped(**grouped(**changed)), kind, message)


@pytest.mark.parametrize(("changed", "kind", "message"), OP)
def test_out_variant_refuses_and_writes_nothing(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    out = torch.full((T, N), 7.0)
    arguments = grouped(**changed, out=out)
    check_refusal(lambda: torch.ops.wlib.int4fp8_gemm_grouped.out(**arguments), kind, message)
    assert torch.all(out == 7)


def weight(n: int = 64, k: int = 128) -> wlib.Int4Weight:
    return wlib.Int4Weight.quantize(torch.ones(n, k))


def module(n: int = 128, k: int = 64, experts: int = 2) -> Int4Fp8Experts:
    zeros = wlib.PackedInt4Experts.zeros
    return Int4Fp8Experts(zeros(2, 128, 128), zeros(experts, n, k, 64))


PACKED = wlib.pack_experts([weight()] * 2)
IDS = torch.zeros(3, 2, dtype=torch.int64)
PYTHON: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: wlib.int4fp8_gemm_grouped(torch.zeros(3, 128), weight().pack(), torch.ones(3), IDS),
     TypeError, "wlib.int4fp8_gemm_grouped: expected p to be a PackedInt4Experts, got "
     "PackedInt4Weight (argument 'p')"),
    (lambda: wlib.int4fp8_gemm_grouped(torch.zeros(3, 96), PACKED, torch.ones(3), IDS), ValueError,
     "wlib.int4fp8_gemm_grouped: expected xq of shape [T, 128] to match k=128, got [3, 96] "
     "(argument 'xq')"),
    (lambda: wlib.int4fp8_gemm_grouped(torch.zeros(3, 128), PACKED, torch.ones(3), IDS), ValueError,
     "wlib.int4fp8_gemm_grouped: expected expert_offsets of shape [3], got [3, 2] "
     "(argument 'expert_offsets')"),
    (lambda: wlib.int4fp8_gemm_grouped(torch.zeros(3, 128), PACKED, torch.ones(3),
                                       torch.tensor([0, 1, 3])), TypeError,
     "wlib::int4fp8_gemm_grouped: expected x of dtype torch.float8_e4m3fn, got torch.float32 "
     "(argument 'x')"),
    (lambda: wlib.pack_experts([]), ValueError,
     "wlib.pack_experts: expected weights of at least one expert, got 0 (argument 'weights')"),
    (lambda: wlib.pack_experts([weight(), weight(n=65)]), ValueError,
     "wlib.pack_experts: expected weights with [n, k, group_size] = [64, 128, 128], got "
     "[65, 128, 128] (argument 'weights')"),
    (lambda: wlib.PackedInt4Experts.quantize(torch.zeros(4, 128)), ValueError,
     "wlib.PackedInt4Experts.quantize: expected w of shape [E, N, K], got [4, 128] (argument 'w')"),
    (lambda: wlib.PackedInt4Experts(PACKED.data.float(), 64, 128, 128), TypeError,
     "wlib.PackedInt4Experts: expected data of dtype torch.uint8, got torch.float32 "
     "(argument 'data')"),
    (lambda: wlib.PackedInt4Experts(PACKED.data, 65, 128, 128), ValueError,
     "wlib.PackedInt4Experts: expected data of shape [2, 2, 4480], got [2, 1, 4480] "
     "(argument 'data')"),
    (lambda: wlib.PackedInt4Experts(PACKED.data[0], 64, 128, 128), ValueError,
     "wlib.PackedInt4Experts: expected data of shape [1, 1, 4480], got [1, 4480] "
     "(argument 'data')"),
    (lambda: wlib.PackedInt4Experts(PACKED.data, 64, 128, 128, layout_version=2), ValueError,
     "wlib.PackedInt4Experts: expected layout_version 1, got 2 (argument 'layout_version')"),
    (lambda: wlib.sort_by_expert(torch.zeros(3, 2), 4), TypeError,
     "wlib.sort_by_expert: expected topk_ids of dtype torch.int64 or torch.int32, got "
     "torch.float32 (argument 'topk_ids')"),
    (lambda: wlib.sort_by_expert(IDS[0], 4), ValueError,
     "wlib.sort_by_expert: expected topk_ids of shape [M, top_k], got [2] (argument 'topk_ids')"),
    (lambda: module(k=96), ValueError, "wlib.PackedInt4Experts: expected group_size of 32, 64, a "
     "multiple of 128 or k itself, dividing k=96 (a multiple of 32), got 64 "
     "(argument 'group_size')"),
    (lambda: Int4Fp8Experts(wlib.PackedInt4Experts.zeros(2, 127, 128), PACKED), ValueError,
     "wlib.nn.Int4Fp8Experts: expected gate_up with an even n, rows of gate and up in turn, "
     "got 127 (argument 'gate_up')"),
    (lambda: module(experts=3), ValueError, "wlib.nn.Int4Fp8Experts: expected down with "
     "[experts, n, k] = [2, 128, 64], got [3, 128, 64] (argument 'down')"),
    (lambda: Int4Fp8Experts.quantize(torch.ones(4, 128), torch.ones(4, 128), torch.ones(4)),
     ValueError, "wlib.nn.Int4Fp8Experts: expected gate of shape [E, F, H], got [4, 128] "
     "(argument 'gate')"),
    (lambda: Int4Fp8Experts.quantize(torch.ones(1, 4, 128), torch.ones(1, 5, 128), torch.ones(4)),
     ValueError, "wlib.nn.Int4Fp8Experts: expected up of shape [1, 4, 128], got [1, 5, 128] "
     "(argument 'up')"),
    (lambda: module()(torch.zeros(4, 128), IDS, torch.zeros(3, 2)), ValueError,
     "wlib.nn.Int4Fp8Experts: expected topk_ids of shape [4, 2], got [3, 2] "
     "(argument 'topk_ids')"),
    (lambda: module()(torch.zeros(3, 128), IDS, torch.zeros(3, 1)), ValueError,
     "wlib.nn.Int4Fp8Experts: expected topk_weights of shape [3, 2], got [3, 1] "
     "(argument 'topk_weights')"),
    (lambda: module()(torch.zeros(3, 128).double(), IDS, torch.zeros(3, 2)), TypeError,
     "wlib.nn.Int4Fp8Experts: expected x of dtype torch.float32 or torch.float16 or "
     "torch.bfloat16, got torch.float64 (argument 'x')"),
    (lambda: module()(torch.zeros(3, 64), IDS, torch.zeros(3, 2)), ValueError,
     "wlib.nn.Int4Fp8Experts: expected x of shape [3, 128], got [3, 64] (argument 'x')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PYTHON)
def test_python_refuses(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as error:
        call()
    assert type(error.value) is kind


def test_weights_packed_otherwise_are_refused() -> None:
    zeros = wlib.PackedInt4Experts.zeros
    other = Int4Fp8Experts(zeros(2, 128, 128, 64), zeros(2, 128, 64, 64))
    with pytest.raises(
        ValueError, match=r"= \[1, 128, 128, 128, 0, 0, 128, 64, 64, 0, 0\], got \["
    ):
        module().load_state_dict(other.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("argument", ["weight", "x_scale", "expert_offsets"])
def test_mixed_devices_are_refused(argument: str) -> None:
    moved = {
        k: v.cuda() if isinstance(v, torch.Tensor) and k != argument else v
        for k, v in grouped().items()
    }
    message = f"expected {argument} on cuda:0 like x, got cpu (argument '{argument}')"
    check_refusal(lambda: torch.ops.wlib.int4fp8_gemm_grouped(**moved), ValueError, message)
