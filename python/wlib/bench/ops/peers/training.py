"""Peers of FP4 training: torchao's FP8 layer, and fp-quant's quantiser in Triton."""

import torch
from torch import Tensor

from ....reference.fp4 import hadamard_matrix
from ...accuracy import Accuracy, sqnr_db
from ...op import Arm, Work
from ..fp4 import ROTATION, Layer, Values, rotated
from ..matmul import Matmul
from .peer import Peer


class TorchaoFloat8(Peer, Layer):
    """torchao's `Float8Linear` with scales per row under `torch.compile`, both directions."""

    name = "torchao_fp8_rowwise"
    dtype = "fp8, all three matmuls"
    package = "torchao"
    module = "torchao"
    least_sqnr_db = 24.0  # E4M3 operands of normal numbers give about 28

    def prepare(self, operands: Matmul) -> Work:
        """Convert a layer; the weight that is rotated takes the place of its own."""
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        n, k = operands.weight.shape
        own = torch.nn.Linear(k, n, bias=False, device="meta")
        config = Float8LinearConfig.from_recipe_name("rowwise")
        layer = convert_to_float8_training(own, config=config)

        def linear(x: Tensor, w: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(layer, {"weight": w}, (x,))
            return y

        return self.both_directions(operands, torch.compile(linear))


class FpQuant(Peer, Arm[Values]):
    """fp-quant's kernel in Triton: MXFP4 after a rotation, written back as BF16 values."""

    name = "fp_quant_triton"
    dtype = "bf16 -> mxfp4 values in bf16"
    package = "fp-quant"
    module = "fp_quant"
    least_sqnr_db = 16.0  # MXFP4 of normal numbers gives about 18

    def prepare(self, operands: Values) -> Work:
        """Make the rotation."""
        from fp_quant.module.triton.mxfp4 import mxfp4_forward_kernel_wrapper

        rotation = hadamard_matrix(ROTATION).to(operands.x)

        def call(x: Tensor) -> Tensor:
            values: Tensor = mxfp4_forward_kernel_wrapper(x, rotation, quest=False)[0]
            return values

        def check(values: Tensor) -> Accuracy:
            return Accuracy(format_sqnr_db=sqnr_db(values, rotated(operands.x).double()))

        return Work(call, (operands.x,), check, (rotation,))
