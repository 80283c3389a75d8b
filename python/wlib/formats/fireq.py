"""FireQ's layout (arXiv 2505.20839)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import refuse
from ..int4fp8 import Int4Weight
from .base import Format, LayerKind, refuse_permutation
from .config import Config
from .layer import FLOATS, WHERE, Int4Layer, LayerTensors, fold_scales, round_scales

_GROUP_SIZE = 128


class FireQ(Format):
    """weight int8 [N, K/2], two's complement, low nibble = even k; or the same as int32 [N, K/8].

    weight_scale [N, K/128] in E4M3 or BF16. per_tensor_scale_inv [1], a power of two, multiplies
    the output, the bias included; it keeps E4M3 scales out of the subnormal range.
    """

    name = "fireq"
    key = "weight_scale"
    fields = frozenset({"weight", "weight_scale", "per_tensor_scale_inv", "bias"})

    @classmethod
    def from_config(cls, config: Config) -> FireQ:
        """The layout has no parameters."""
        return cls()

    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer, its factor multiplied into the group scales and the bias, exactly."""
        stored = tensors.take("weight", [torch.int8, torch.int32], (None, None))
        codes = stored.contiguous().view(torch.uint8)
        n, k = codes.shape[0], codes.shape[1] * 2
        dtypes = (torch.float8_e4m3fn, torch.bfloat16)
        scale = tensors.take("weight_scale", dtypes, (n, None)).float()
        tensors.groups(scale, k, _GROUP_SIZE, "weight_scale")
        bias = tensors.bias(n)
        factor = tensors.find("per_tensor_scale_inv", FLOATS, (1,))
        if factor is not None:
            if math.frexp(factor.item())[0] != 0.5:  # -0.5 for a negative one
                tensors.refuse("a power of two", factor.item(), "per_tensor_scale_inv")
            scale = scale * factor.float()
            bias = None if bias is None else bias.float() * factor.float()
        group_scale, channel_scale, error = fold_scales(scale, tensors, "weight_scale")
        return Int4Layer(Int4Weight(codes, group_scale, None, channel_scale), bias, None, error)

    @classmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """BF16 scales without a factor, for symmetric weights in groups of 128."""
        weight = layer.weight
        refuse_permutation(layer, "FireQ", name)
        if weight.group_size != _GROUP_SIZE:
            refuse(WHERE, f"groups of {_GROUP_SIZE} columns", weight.group_size, name)
        if weight.zero_point is not None:
            refuse(WHERE, "a weight without zero points", "some", name)
        scale, error = round_scales(weight, torch.bfloat16, name)
        return {"weight": weight.codes.view(torch.int32), "weight_scale": scale}, error

    @classmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """FireQ's checkpoints have none; the name tells readers which layout this is."""
        return {"quant_method": "fireq", "bits": 4, "group_size": _GROUP_SIZE}
