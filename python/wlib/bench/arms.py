"""What is measured: an arm is one way to multiply by a weight, with the weight as it is stored."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
E4M3_MAX = 448.0


class Arm(ABC):
    """One kernel under measurement, holding one weight [N, K] as this kernel stores it.

    `stored` are the tensors that are copied and rotated, so that a call finds its weight outside
    L2. An arm whose package or device is missing says so in `unavailable` and is left out.
    """

    name: ClassVar[str]
    dtype: ClassVar[str]  # of weight and activation, as shown in tables
    version: str
    stored: Tensors

    @abstractmethod
    def __init__(self, weight: Tensor, group_size: int) -> None:
        """Convert `weight` [N, K] bfloat16 to `stored`."""

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return None

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""

    @abstractmethod
    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""

    @abstractmethod
    def reference(self, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""


class TorchBf16(Arm):
    """`torch.matmul` on BF16 operands."""

    name = "torch_bf16"
    dtype = "bf16 x bf16"
    matmul_dtype: ClassVar[torch.dtype] = torch.bfloat16

    def __init__(self, weight: Tensor, group_size: int) -> None:
        self.version = torch.__version__
        self.stored = (weight.to(self.matmul_dtype),)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        return (x.to(self.matmul_dtype),)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N]: the timed call."""
        return torch.matmul(inputs[0], stored[0].t())

    def reference(self, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        return inputs[0][rows].double() @ self.stored[0][columns].double().t()


class TorchFp32(TorchBf16):
    """`torch.matmul` on FP32 operands: what a CPU is good at."""

    name = "torch_fp32"
    dtype = "fp32 x fp32"
    matmul_dtype = torch.float32

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return None if device.type == "cpu" else "a baseline for the CPU"


class TorchFp8Rowwise(Arm):
    """`torch._scaled_mm` on E4M3 operands, one scale per token and one per output channel."""

    name = "torch_fp8_rowwise"
    dtype = "fp8 x fp8"
    scale_dims: ClassVar[tuple[int, ...]] = (1,)  # over which an absmax is taken

    def __init__(self, weight: Tensor, group_size: int) -> None:
        self.version = torch.__version__
        self.stored = self._quantize(weight)

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
            use_fast_accum=True,
        )

    def reference(self, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        x, weight = (
            codes[index].double() * scale.double().expand(len(codes), 1)[index]
            for (codes, scale), index in ((inputs, rows), (self.stored, columns))
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
