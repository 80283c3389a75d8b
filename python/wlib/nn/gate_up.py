"""The first half of a gated MLP in one matmul."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import refuse
from ..int4fp8 import Int4Weight
from .int4fp8 import Int4Fp8Linear

_NAME = "wlib.nn.Int4Fp8GateUp"


class Int4Fp8GateUp(nn.Module):
    """silu(x Wg^T + bg) * (x Wu^T + bu), with x quantised once and no intermediate in memory.

    Args:
        rows: the layer whose rows are those of gate and up in turn; `from_linears` makes one.

    Attributes:
        rows: that layer, [2 F, K]; may be sharded as any other, into parts with an even number of
            rows.

    Raises:
        ValueError: rows has an odd number of output features.
    """

    def __init__(self, rows: Int4Fp8Linear) -> None:
        super().__init__()
        if rows.out_features % 2:
            refuse(_NAME, "an even number of output features", rows.out_features, "rows")
        self.rows = rows

    @classmethod
    def from_linears(cls, gate: Int4Fp8Linear, up: Int4Fp8Linear) -> Int4Fp8GateUp:
        """One layer of two, of which nothing is shared; both see the same x.

        Args:
            gate, up: layers [F, K] with the same group size and order of columns, on one device.

        Raises:
            ValueError: the two do not fit.
        """
        order, other = gate.k_permutation, up.k_permutation
        if (order is None) != (other is None) or (
            order is not None and other is not None and not torch.equal(order, other)
        ):
            refuse(_NAME, "up with the order of columns of gate", "another k_permutation", "up")
        weight = Int4Weight.interleave(gate.packed.unpack(), up.packed.unpack())
        bias = None
        if gate.bias is not None or up.bias is not None:
            zeros = torch.zeros(gate.out_features, device=gate.packed_weight.device)
            biases = [zeros if b is None else b for b in (gate.bias, up.bias)]
            bias = torch.stack(biases, dim=1).flatten()
        rows = Int4Fp8Linear.from_weight(weight, bias, order)
        return cls(rows).train(gate.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., K]; [..., F]. The rest as in `Int4Fp8Linear.forward`."""
        y: Tensor = self.rows(x, activation="silu_mul")
        return y
