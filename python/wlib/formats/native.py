"""wlib's own format: the tensors of `Int4Weight` as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..int4fp8 import Int4Weight
from .base import Format, LayerKind
from .config import Config
from .layer import Int4Layer, LayerTensors

FORMAT_VERSION = 1


class Native(Format):
    """codes, group_scale and whichever of zero_point, channel_scale, k_permutation there are.

    The plain layout, not the packed one: it can be sharded, and a kernel's layout may change.
    """

    name = "wlib"
    key = "codes"
    fields = frozenset(
        {"codes", "group_scale", "zero_point", "channel_scale", "k_permutation", "bias"}
    )
    metadata: ClassVar[Mapping[str, str]] = {
        "format": "pt",
        "wlib_format_version": str(FORMAT_VERSION),
    }

    @classmethod
    def from_config(cls, config: Config) -> Native:
        """Any checkpoint of this version."""
        config.one_of("format_version", FORMAT_VERSION)
        return cls()

    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer, bit for bit as it was written."""
        codes = tensors.take("codes", [torch.uint8], (None, None))
        n, k = codes.shape[0], codes.shape[1] * 2
        scale = tensors.take("group_scale", [torch.bfloat16], (n, None))
        tensors.groups(scale, k, None, "group_scale")
        order = tensors.find("k_permutation", [torch.int32], (k,))
        if order is not None and not torch.equal(order.sort()[0].long(), torch.arange(k)):
            tensors.refuse(
                f"a permutation of 0..{k - 1}", "repeated or other values", "k_permutation"
            )
        weight = Int4Weight(
            codes,
            scale,
            tensors.find("zero_point", [torch.float32], scale.shape),
            tensors.find("channel_scale", [torch.float32], (n,)),
        )
        return Int4Layer(weight, tensors.bias(n), order)

    @classmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """Every layer fits, without rounding."""
        weight = layer.weight
        tensors = {
            "codes": weight.codes,
            "group_scale": weight.group_scale,
            "zero_point": weight.zero_point,
            "channel_scale": weight.channel_scale,
            "k_permutation": layer.k_permutation,
        }
        return {field: tensor for field, tensor in tensors.items() if tensor is not None}, 0.0

    @classmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """The version; everything else follows from the tensors."""
        return {"quant_method": "wlib", "format_version": FORMAT_VERSION}
