"""FBGEMM: INT4 weights with FP8 group scales, shuffled for its kernels, and FP8 activations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....quantizer import fp8_quantize
from ...accuracy import Accuracy
from ...op import Arm, Sizes, Tensors, Work
from ..grouped import Routed
from ..matmul import Matmul, MatmulArm
from .peer import Peer

LEAST_GROUP = 128  # what its kernels take


@dataclass(frozen=True)
class Shuffled:
    """A weight as FBGEMM keeps it, and the [N, K] float64 that it stands for."""

    codes: Tensor
    row_scale: Tensor
    group_scale: Tensor
    dequantized: Tensor


def shuffle(weight: Tensor, group_size: int) -> Shuffled:
    """Quantise as FBGEMM's `quantize_int4_preshuffle` does: rows to FP8 first, then to INT4."""
    from fbgemm_gpu.experimental.gen_ai.quantize import (
        int4_row_quantize,
        pack_int4,
        quantize_fp8_row,
    )

    rows, row_scale = quantize_fp8_row(weight)
    codes, group_scale = int4_row_quantize(rows, group_size)  # [N, K], [K / group, N]
    group_scale = group_scale.to(torch.float8_e4m3fn)
    scale = group_scale.double().t().repeat_interleave(group_size, 1) * row_scale.double()[:, None]
    packed, shuffled_scale = torch.ops.fbgemm.preshuffle_i4(pack_int4(codes), group_scale)
    return Shuffled(packed, row_scale, shuffled_scale, codes.double() * scale)


class Fbgemm(Peer, MatmulArm):
    """`torch.ops.fbgemm.f8i4bf16_shuffled`."""

    name = "fbgemm"
    dtype = "int4 x fp8"
    package = "fbgemm-gpu-genai"
    module = "fbgemm_gpu"
    least_sqnr_db = 40.0

    def prepare(self, operands: Matmul) -> Work | None:
        """Convert the operands; None if the groups are too small."""
        return None if operands.sizes["group_size"] % LEAST_GROUP else super().prepare(operands)

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        one = shuffle(weight, sizes["group_size"])
        self._dequantized = one.dequantized
        return one.codes, one.row_scale, one.group_scale

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return fp8_quantize(x)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        (codes, row_scale, group_scale), (x, x_scale) = stored, inputs
        y: Tensor = torch.ops.fbgemm.f8i4bf16_shuffled(x, codes, x_scale, row_scale, group_scale)
        return y

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        x, x_scale = inputs
        return (x[rows].double() * x_scale[rows].double()[:, None]) @ self._dequantized[columns].t()


class FbgemmGrouped(Peer, Arm[Routed]):
    """`torch.ops.fbgemm.f8i4bf16_shuffled_grouped`: one launch for all experts."""

    name = "fbgemm"
    dtype = "int4 x fp8"
    package = Fbgemm.package
    module = Fbgemm.module
    least_sqnr_db = 40.0

    def prepare(self, operands: Routed) -> Work | None:
        """Shuffle every expert's weight, quantise the tokens; None if the groups are too small."""
        if operands.group_size % LEAST_GROUP:
            return None
        experts = [shuffle(weight, operands.group_size) for weight in operands.weights]
        parts = ("codes", "row_scale", "group_scale")
        stored = tuple(torch.stack([getattr(one, part) for one in experts]) for part in parts)
        x, x_scale = fp8_quantize(operands.x)
        counts = operands.offsets.diff().int()

        def call(codes: Tensor, row_scale: Tensor, group_scale: Tensor) -> Tensor:
            y: Tensor = torch.ops.fbgemm.f8i4bf16_shuffled_grouped(
                x, codes, x_scale, row_scale, group_scale, counts
            )
            return y

        def check(y: Tensor) -> Accuracy:
            dequantized = x.double() * x_scale.double()[:, None]
            return operands.compare(y, lambda e: experts[e].dequantized, dequantized)

        return Work(call, stored, check, (x, x_scale, counts))
