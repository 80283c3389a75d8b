"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import refuse
from ..int4fp8 import Int4Weight
from .base import Format, LayerKind, single_kind
from .config import Config
from .layer import (
    FLOATS,
    OFFSET,
    WHERE,
    Int4Layer,
    LayerTensors,
    fold_scales,
    integer_zeros,
    pack_nibbles,
    round_scales,
    sort_groups,
    unpack_nibbles,
    unsort_groups,
)


@dataclass(frozen=True)
class Gptq(Format):
    """qweight int32 [K/8, N], code + 8 with the lowest nibble first along K.

    scales [K/G, N] in a float dtype, g_idx int32 [K] (the group of each input feature; may be
    missing without act order), qzeros int32 [K/G, N/8], the lowest nibble first along N. Version 1
    stores the zero point minus one, modulo 16: 8 is stored as 7, and 0 as 15. Version 2 stores it
    as it is.
    """

    group_size: int
    symmetric: bool
    zero_offset: int

    name = "gptq"
    key = "qweight"
    fields = frozenset({"qweight", "qzeros", "scales", "g_idx", "bias"})

    @classmethod
    def from_config(cls, config: Config) -> Gptq:
        """4 bits, version 1 or 2; ValueError naming the field otherwise."""
        config.one_of("bits", 4)
        config.one_of("desc_act", True, False, default=False)  # each layer's g_idx says it all
        config.one_of("dynamic", None, {}, default=None)
        version = config.one_of("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        return cls(
            group_size=config.integer("group_size"),
            symmetric=config.one_of("sym", True, False),
            zero_offset=1 if version == "gptq" else 0,
        )

    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer, its columns sorted by group."""
        packed = tensors.take("qweight", [torch.int32], (None, None))
        k, n = packed.shape[0] * 8, packed.shape[1]
        scale = tensors.take("scales", FLOATS, (None, n)).T
        tensors.groups(scale, k, self.group_size, "scales")
        group_scale, channel_scale, error = fold_scales(scale, tensors, "scales")
        codes = packed.T.contiguous().view(torch.uint8) ^ OFFSET
        g_idx = tensors.find("g_idx", [torch.int32], (k,))
        order = None
        if g_idx is not None:
            codes, order = sort_groups(codes, g_idx, scale.shape[1], tensors, "g_idx")
        weight = Int4Weight(codes, group_scale, self._zeros(tensors, scale), channel_scale)
        return Int4Layer(weight, tensors.bias(n), order, error)

    def _zeros(self, tensors: LayerTensors, scale: Tensor) -> Tensor | None:
        n, groups = scale.shape
        if n % 8:
            tensors.refuse("N a multiple of 8", n, "qzeros")
        packed = tensors.take("qzeros", [torch.int32], (groups, n // 8))
        zeros = (unpack_nibbles(packed).T + self.zero_offset) & 15
        if not self.symmetric:
            return zeros.float() - 8
        if (zeros != 8).any():
            tensors.refuse("zero points of 8, as sym says", "others", "qzeros")
        return None

    @classmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """Version 1, which every reader knows, with float16 scales."""
        weight = layer.weight
        if weight.n % 8:
            refuse(WHERE, "N a multiple of 8", weight.n, f"{name} qzeros")
        scale, error = round_scales(weight, torch.float16, name)
        zeros = (integer_zeros(weight, name) - 1) & 15
        codes, g_idx = unsort_groups(layer)
        return {
            "qweight": (codes ^ OFFSET).view(torch.int32).T.contiguous(),
            "qzeros": pack_nibbles(zeros.T).view(torch.int32),
            "scales": scale.T.contiguous(),
            "g_idx": g_idx,
        }, error

    @classmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """One group size for all layers."""
        kind = single_kind(cls.name, kinds)
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": kind.group_size,
            "desc_act": kind.is_permuted,
            "sym": not kind.has_zero_point,
            "checkpoint_format": "gptq",
        }
