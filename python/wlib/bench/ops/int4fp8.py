"""`int4fp8_gemm`: wlib, with and without its activation quantiser, and torch."""

import torch
from torch import Tensor

from ...int4fp8 import Int4Weight
from ...quantizer import fp8_quantize
from ...reference.int4fp8 import int4fp8_gemm
from ..environment import wlib_version
from ..op import Op, Sizes, Target, Tensors, Where, against, copy_fraction
from .matmul import (
    MatmulArm,
    TorchBf16,
    TorchFp8Rowwise,
    TorchFp8Tensorwise,
    TorchFp32,
    matmul,
    matmul_flops,
)

LARGE_WEIGHT_BYTES = 64_000_000  # of INT4: no L2 holds them


class Int4Fp8Gemm(MatmulArm):
    """`wlib.int4fp8_gemm` on quantised activations: the GEMM alone."""

    name = "wlib"
    dtype = "int4 x fp8"
    version = staticmethod(wlib_version)

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        self._weight = Int4Weight.quantize(weight, group_size=sizes["group_size"])
        return (self._weight.pack().data,)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return fp8_quantize(x)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        (x, x_scale), n, group_size = inputs, self._weight.n, self._weight.group_size
        y: Tensor = torch.ops.wlib.int4fp8_gemm(
            x, stored[0], x_scale, n=n, group_size=group_size, out_dtype=torch.bfloat16
        )
        return y

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
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

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        return super().reference(stored, fp8_quantize(inputs[0]), rows, columns)


def _targets() -> tuple[Target, ...]:
    bf16, fp8 = against("torch_bf16"), against("torch_fp8")

    def few(sizes: Sizes) -> bool:
        return sizes["m"] <= 16

    def large(sizes: Sizes) -> bool:
        return sizes["n"] * sizes["k"] // 2 >= LARGE_WEIGHT_BYTES

    def between(low: int, high: int) -> Where:
        return lambda sizes: low <= sizes["m"] <= high

    def streaming(sizes: Sizes) -> bool:
        return few(sizes) and large(sizes)

    def smaller(sizes: Sizes) -> bool:
        return few(sizes) and not large(sizes) and sizes["n"] * sizes["k"] >= 4096**2

    many = between(4096, 1 << 31)
    return (
        Target("of copy bandwidth, M <= 16, from 64 MB", 0.70, 0.90, copy_fraction, streaming),
        Target("x torch_bf16, M <= 16, from 64 MB", 2.8, 3.5, bf16, streaming),
        Target("x the better torch_fp8, M <= 16, from 64 MB", 1.5, 1.85, fp8, streaming),
        Target("x torch_bf16, M <= 16, below 64 MB", 1.6, 2.7, bf16, smaller),
        Target("x the better torch_fp8, M 32 to 64", 1.35, 1.75, fp8, between(32, 64)),
        Target("x the better torch_fp8, M 128", 1.05, 1.35, fp8, between(128, 128)),
        Target("x the better torch_fp8, M 256 to 2048", 0.88, 1.02, fp8, between(256, 2048)),
        Target("x the better torch_fp8, M from 4096", 0.80, 0.97, fp8, many),
        Target("x torch_bf16, M from 4096", 1.45, 1.8, bf16, many),
        Target("of 1979 TFLOP/s, M from 4096", 0.50, 0.68, lambda row: row.tflops / 1979, many),
    )


OP = Op(
    name="int4fp8",
    sizes=("m", "n", "k", "group_size"),
    operands=matmul,
    flops=matmul_flops,
    arms=(
        Int4Fp8Gemm,
        Int4Fp8Linear,
        TorchBf16,
        TorchFp8Rowwise,
        TorchFp8Tensorwise,
        TorchFp32,
    ),
    targets=_targets(),
)
