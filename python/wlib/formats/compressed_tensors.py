"""compressed-tensors' pack-quantized format, the W4A16 and W4AFP8 checkpoints of llm-compressor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..int4fp8 import Int4Weight
from .base import Format, LayerKind, single_kind
from .config import Config
from .layer import (
    FLOATS,
    OFFSET,
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
class Scheme:
    """What a config group says of the weights its targets name."""

    targets: tuple[str, ...]
    group_size: int
    symmetric: bool
    act_order: bool

    @classmethod
    def from_config(cls, group: Config) -> Scheme:
        """ValueError naming the field wlib cannot read."""
        weights = group.section("weights")
        weights.one_of("num_bits", 4)
        weights.one_of("type", "int", default="int")
        weights.one_of("dynamic", False, default=False)
        strategy = weights.one_of("strategy", "group", "channel")
        group.one_of("format", "pack-quantized", None, default=None)
        group.one_of("output_activations", None, default=None)
        if group.values.get("input_activations") is not None:
            inputs = group.section("input_activations")
            inputs.one_of("num_bits", 8)
            inputs.one_of("type", "float")
            inputs.one_of("dynamic", True)
            inputs.one_of("strategy", "token")
        targets = group.values.get("targets")
        if not isinstance(targets, list) or not all(isinstance(text, str) for text in targets):
            group.refuse("a list of strings", targets, "targets")
        return cls(
            targets=tuple(targets or ()),
            group_size=weights.integer("group_size") if strategy == "group" else -1,
            symmetric=weights.one_of("symmetric", True, False),
            act_order=weights.one_of(
                "actorder", None, False, True, "static", "weight", "dynamic", "group", default=None
            )
            in (True, "group", "dynamic"),
        )

    def rank(self, layer: str) -> int:
        """How closely the targets fit a layer: 0 by name, 1 by pattern, 2 by class."""
        if layer in self.targets:
            return 0
        patterns = (target[3:] for target in self.targets if target.startswith("re:"))
        return 1 if any(re.match(pattern, layer) for pattern in patterns) else 2


@dataclass(frozen=True)
class CompressedTensors(Format):
    """weight_packed int32 [N, ceil(K/8)], code + 8 with the lowest nibble first along K.

    weight_scale [N, K/G] in a float dtype, weight_shape [2]; weight_zero_point int32
    [ceil(N/8), K/G] packed along N, if the weights are not symmetric; weight_g_idx int32 [K] with
    act order. Activations are quantised per token as the layer runs, whatever the config says of
    them: 8-bit floats of dynamic scale, or none.
    """

    schemes: tuple[Scheme, ...]

    name = "compressed-tensors"
    key = "weight_packed"
    fields = frozenset(
        {
            "weight_packed",
            "weight_scale",
            "weight_shape",
            "weight_zero_point",
            "weight_g_idx",
            "bias",
        }
    )

    @classmethod
    def from_config(cls, config: Config) -> CompressedTensors:
        """One scheme per config group."""
        config.one_of("format", "pack-quantized")
        config.one_of("sparsity_config", None, {}, default=None)
        config.one_of("transform_config", None, {}, default=None)
        groups = config.section("config_groups")
        if not groups.values:
            config.refuse("at least one group", "none", "config_groups")
        return cls(tuple(Scheme.from_config(groups.section(name)) for name in groups.values))

    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer by the scheme whose targets fit it best."""
        scheme = min(self.schemes, key=lambda scheme: scheme.rank(tensors.layer))
        packed = tensors.take("weight_packed", [torch.int32], (None, None))
        shape = tensors.take("weight_shape", [torch.int64, torch.int32], (2,)).tolist()
        n, k = shape
        if len(packed) != n or packed.shape[1] != -(-k // 8) or k % 32:
            expected = f"[N, K] of weight_packed {list(packed.shape)}, K a multiple of 32"
            tensors.refuse(expected, shape, "weight_shape")
        scale = tensors.take("weight_scale", FLOATS, (n, None))
        tensors.groups(scale, k, scheme.group_size, "weight_scale")
        group_scale, channel_scale, error = fold_scales(scale, tensors, "weight_scale")
        codes = packed.contiguous().view(torch.uint8) ^ OFFSET
        order = None
        g_idx = tensors.find("weight_g_idx", [torch.int32], (k,))
        if g_idx is not None:
            if not scheme.act_order:
                tensors.refuse("no act order, as config.json says", "a g_idx", "weight_g_idx")
            codes, order = sort_groups(codes, g_idx, scale.shape[1], tensors, "weight_g_idx")
        weight = Int4Weight(codes, group_scale, self._zeros(tensors, scale, scheme), channel_scale)
        return Int4Layer(weight, tensors.bias(n), order, error)

    def _zeros(self, tensors: LayerTensors, scale: Tensor, scheme: Scheme) -> Tensor | None:
        n, groups = scale.shape
        packed = tensors.find("weight_zero_point", [torch.int32], (-(-n // 8), groups))
        if (packed is None) != scheme.symmetric:
            got = "none" if packed is None else "zero points"
            tensors.refuse(f"symmetric: {scheme.symmetric}", got, "weight_zero_point")
        return None if packed is None else unpack_nibbles(packed.T).T[:n].float() - 8

    @classmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """Scales in BF16, or in float32 where there is a channel scale to multiply in."""
        weight = layer.weight
        dtype = torch.bfloat16 if weight.channel_scale is None else torch.float32
        scale, error = round_scales(weight, dtype, name)
        codes, g_idx = unsort_groups(layer)
        tensors = {
            "weight_packed": (codes ^ OFFSET).view(torch.int32),
            "weight_scale": scale,
            "weight_shape": torch.tensor([weight.n, weight.k]),
        }
        if weight.zero_point is not None:
            zeros = pad(integer_zeros(weight, name).T, (0, -weight.n % 8))
            packed = pack_nibbles(zeros).view(torch.int32).T
            tensors["weight_zero_point"] = packed.contiguous()
        if layer.k_permutation is not None:
            tensors["weight_g_idx"] = g_idx
        return tensors, error

    @classmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """One group of all linear layers, its activations 8-bit floats as the kernel takes them."""
        kind = single_kind(cls.name, kinds)
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": not kind.has_zero_point,
            "strategy": "channel" if kind.group_size == -1 else "group",
            "group_size": None if kind.group_size == -1 else kind.group_size,
            "actorder": "group" if kind.is_permuted else None,
            "dynamic": False,
        }
        inputs = {
            "num_bits": 8,
            "type": "float",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": dense,
        }
