"""AWQ checkpoints in the GEMM layout of AutoAWQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import refuse
from ..int4fp8 import Int4Weight
from .base import Format, LayerKind, refuse_permutation, single_kind
from .config import Config
from .layer import (
    FLOATS,
    WHERE,
    Int4Layer,
    LayerTensors,
    fold_scales,
    integer_zeros,
    pack_nibbles,
    round_scales,
    unpack_nibbles,
)

# Nibble i of a word holds column ORDER[i] of its eight; column j sits in nibble PLACE[j].
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLACE = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Awq(Format):
    """qweight int32 [K, N/8] and qzeros int32 [K/G, N/8], eight columns of N per word.

    Both hold 0..15, interleaved as `ORDER` says; scales [K/G, N] in a float dtype. A weight is
    (code - zero point) * scale. Without `zero_point` in the config every zero point is 8.
    """

    group_size: int
    symmetric: bool

    name = "awq"
    key = "qweight"
    fields = frozenset({"qweight", "qzeros", "scales", "bias"})

    @classmethod
    def from_config(cls, config: Config) -> Awq:
        """4 bits in the GEMM layout; ValueError naming the field otherwise."""
        config.one_of("bits", 4)
        config.one_of("version", "gemm", "GEMM", default="gemm")
        return cls(
            group_size=config.integer("group_size"),
            symmetric=not config.one_of("zero_point", True, False),
        )

    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer."""
        packed = tensors.take("qweight", [torch.int32], (None, None))
        k, n = packed.shape[0], packed.shape[1] * 8
        scale = tensors.take("scales", FLOATS, (None, n)).T
        tensors.groups(scale, k, self.group_size, "scales")
        group_scale, channel_scale, error = fold_scales(scale, tensors, "scales")
        packed_zeros = tensors.take("qzeros", [torch.int32], (scale.shape[1], n // 8))
        zeros = _reorder(unpack_nibbles(packed_zeros), PLACE).T.float() - 8
        if self.symmetric and zeros.any():
            tensors.refuse("zero points of 8, as zero_point says", "others", "qzeros")
        values = _reorder(unpack_nibbles(packed), PLACE).T ^ 8
        zero_point = None if self.symmetric else zeros
        weight = Int4Weight(pack_nibbles(values), group_scale, zero_point, channel_scale)
        return Int4Layer(weight, tensors.bias(n), None, error)

    @classmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """Float16 scales, and columns in the order of the input features."""
        weight = layer.weight
        refuse_permutation(layer, "AWQ", name)
        if weight.n % 8:
            refuse(WHERE, "N a multiple of 8", weight.n, f"{name} qweight")
        scale, error = round_scales(weight, torch.float16, name)
        values = torch.stack((weight.codes & 15, weight.codes >> 4), dim=2).flatten(1) ^ 8
        zeros = integer_zeros(weight, name)
        return {
            "qweight": pack_nibbles(_reorder(values.T, ORDER)).view(torch.int32),
            "qzeros": pack_nibbles(_reorder(zeros.T, ORDER)).view(torch.int32),
            "scales": scale.T.contiguous(),
        }, error

    @classmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """One group size for all layers."""
        kind = single_kind(cls.name, kinds)
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": kind.group_size,
            "zero_point": kind.has_zero_point,
            "version": "gemm",
            "modules_to_not_convert": dense,
        }


def _reorder(values: Tensor, order: Sequence[int]) -> Tensor:
    """[R, 8C] -> [R, 8C]: column j of each eight becomes column order[j] of the argument's."""
    eights = values.reshape(len(values), -1, 8)
    return eights[:, :, list(order)].flatten(1)
