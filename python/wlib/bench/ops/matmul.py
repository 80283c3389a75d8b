"""Matmuls by a weight: their operands, and torch's arms."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..accuracy import Accuracy, compare
from ..op import Arm, Sizes, Tensors, Work, normal, spread

E4M3_MAX = 448.0
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 256  # of the output that is compared with float64


@dataclass(frozen=True)
class Matmul:
    """y = x @ weight.T with x [M, K] and weight [N, K], bfloat16."""

    x: Tensor
    weight: Tensor
    sizes: Sizes


def matmul(sizes: Sizes, generator: torch.Generator) -> Matmul:
    """Return random operands; outputs are about 1."""
    m, n, k = (sizes[name] for name in "mnk")
    return Matmul(normal(generator, m, k), normal(generator, n, k) / k**0.5, sizes)


def matmul_flops(sizes: Sizes) -> int:
    """Return 2 m n k."""
    return 2 * sizes["m"] * sizes["n"] * sizes["k"]


class MatmulArm(Arm[Matmul]):
    """Multiplies by a weight that is kept as `store` gives it."""

    def prepare(self, operands: Matmul) -> Work | None:
        """Convert the operands to what this arm takes; none of it is timed."""
        stored = self.store(operands.weight, operands.sizes)
        inputs = self.inputs(operands.x)

        def check(y: Tensor) -> Accuracy:
            rows = spread(len(operands.x), SAMPLE_ROWS, y)
            columns = spread(len(operands.weight), SAMPLE_COLUMNS, y)
            original = operands.x[rows].double() @ operands.weight[columns].double().t()
            reference = self.reference(stored, inputs, rows, columns)
            return compare(y[rows][:, columns], reference, original)

        return Work(lambda *held: self.call(held, inputs), stored, check, inputs)

    @abstractmethod
    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""

    @abstractmethod
    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""

    @abstractmethod
    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Any:
        """Return y[rows][:, columns] in float64, from the same stored operands."""


class TorchBf16(MatmulArm):
    """`torch.matmul` on BF16 operands."""

    name = "torch_bf16"
    dtype = "bf16 x bf16"
    matmul_dtype: ClassVar[torch.dtype] = torch.bfloat16

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        return (weight.to(self.matmul_dtype),)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return (x.to(self.matmul_dtype),)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N]: the timed call."""
        return torch.matmul(inputs[0], stored[0].t())

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        return inputs[0][rows].double() @ stored[0][columns].double().t()


class TorchFp32(TorchBf16):
    """`torch.matmul` on FP32 operands: what a CPU is good at."""

    name = "torch_fp32"
    dtype = "fp32 x fp32"
    matmul_dtype = torch.float32

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return None if device.type == "cpu" else "a baseline for the CPU"


class TorchFp8Rowwise(MatmulArm):
    """`torch._scaled_mm` on E4M3 operands, one scale per token and one per output channel."""

    name = "torch_fp8_rowwise"
    dtype = "fp8 x fp8"
    scale_dims: ClassVar[tuple[int, ...]] = (1,)  # over which an absmax is taken
    fast: ClassVar[bool] = True  # sums stay in the tensor cores, with about 14 bits

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        return self._quantize(weight)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return self._quantize(x)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        (weight, weight_scale), (x, x_scale) = stored, inputs
        return torch._scaled_mm(
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=weight_scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=self.fast,
        )

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        x, weight = (
            codes[index].double() * scale.double().expand(len(codes), 1)[index]
            for (codes, scale), index in ((inputs, rows), (stored, columns))
        )
        return x @ weight.t()

    def _quantize(self, values: Tensor) -> Tensors:
        """[R, K] -> E4M3 [R, K] and its float32 scales, [R, 1] or [1, 1]."""
        absmax = values.abs().amax(self.scale_dims, keepdim=True).float()
        scale = absmax / E4M3_MAX
        return (values / scale).to(torch.float8_e4m3fn), scale


class TorchFp8Tensorwise(TorchFp8Rowwise):
    """`torch._scaled_mm` on E4M3 operands, one scale per tensor."""

    name = "torch_fp8_tensorwise"
    scale_dims = (0, 1)


class TorchFp8Slow(TorchFp8Rowwise):
    """`torch._scaled_mm` with scales per row whose sums are promoted to FP32."""

    name = "torch_fp8_slow_accum"
    fast = False
