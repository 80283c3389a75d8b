"""Humming: INT4 weights and FP8 activations, kernels compiled when they are first called."""

from typing import Any

import torch
from torch import Tensor

from ...op import Sizes, Tensors
from ..matmul import MatmulArm
from .peer import Peer


class Humming(Peer, MatmulArm):
    """`humming_forward` on activations quantised per token, weights quantised by Humming."""

    name = "humming"
    dtype = "int4 x fp8"
    package = "humming-kernels"
    module = "humming"
    least_sqnr_db = 40.0

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        from humming.layer import HummingLayer
        from humming.utils.weight import dequantize_weight

        n, k = weight.shape
        layer: Any = HummingLayer(
            shape_n=n,
            shape_k=k,
            weight_config={"dtype": "int4", "group_size": sizes["group_size"]},
            input_config={"dtype": "float8e4m3"},
            torch_dtype=torch.bfloat16,
        ).to(weight.device)
        layer.load_from_unquantized(weight)
        # The kernel's own layout comes last: what it stands for is read before.
        self._dequantized = dequantize_weight(
            layer.weight, layer.weight_scale, None, None, layer.weight_schema.b_dtype, packed=True
        )
        layer.transform()
        self._layer = layer
        return layer.weight.data, layer.weight_scale.data

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        from humming.forward import may_quant_input

        codes, scale = may_quant_input(self._layer.humming_config, x)
        return codes, scale

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        from humming.forward import humming_forward

        y: Tensor = humming_forward(
            self._layer.humming_config,
            inputs=inputs[0],
            weight=stored[0],
            weight_scale=stored[1],
            input_scale=inputs[1],
            locks=self._layer.locks,
        )
        return y

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        codes, scale = inputs
        x = codes[rows].double() * scale.reshape(-1, 1)[rows].double()
        weight: Tensor = self._dequantized[columns].double()
        return x @ weight.t()
