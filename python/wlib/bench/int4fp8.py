"""The arms of `int4fp8_gemm`: wlib, with and without its activation quantiser, and baselines."""

import torch
from torch import Tensor

from ..int4fp8 import Int4Weight
from ..quantizer import fp8_quantize
from ..reference.int4fp8 import int4fp8_gemm
from .arms import (
    Arm,
    Tensors,
    TorchBf16,
    TorchFp8Rowwise,
    TorchFp8Tensorwise,
    TorchFp32,
)
from .environment import wlib_version


class Int4Fp8Gemm(Arm):
    """`wlib.int4fp8_gemm` on quantised activations: the GEMM alone."""

    name = "wlib"
    dtype = "int4 x fp8"

    def __init__(self, weight: Tensor, group_size: int) -> None:
        self.version = wlib_version()
        self._weight = Int4Weight.quantize(weight, group_size=group_size)
        self._packed = self._weight.pack()
        self.stored = (self._packed.data,)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return fp8_quantize(x)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        (x, x_scale), n, group_size = inputs, self._packed.n, self._packed.group_size
        y: Tensor = torch.ops.wlib.int4fp8_gemm(
            x, stored[0], x_scale, n=n, group_size=group_size, out_dtype=torch.bfloat16
        )
        return y

    def reference(self, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        x, x_scale = inputs
        weight = self._weight
        part = Int4Weight(codes=weight.codes[columns], group_scale=weight.group_scale[columns])
        return int4fp8_gemm(x[rows], part, x_scale[rows]).y


class Int4Fp8Linear(Int4Fp8Gemm):
    """`fp8_quantize` and then the GEMM, as a linear layer in BF16 runs them."""

    name = "wlib+quantize"

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return (x,)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        return super().call(stored, fp8_quantize(inputs[0]))

    def reference(self, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        return super().reference(fp8_quantize(inputs[0]), rows, columns)


ARMS: tuple[type[Arm], ...] = (
    Int4Fp8Gemm,
    Int4Fp8Linear,
    TorchBf16,
    TorchFp8Rowwise,
    TorchFp8Tensorwise,
    TorchFp32,
)
