"""INT4 weights and FP8 activations in vLLM, as a quantisation method out of its tree.

    import vllm_quantization
    from vllm import LLM

    llm = LLM(path, quantization="wlib")                    # quantises 16-bit weights as it loads
    own = {"quant_method": "wlib", "format_version": 1, "group_size": 128}
    llm = LLM(path, hf_overrides={"quantization_config": own})   # `python -m wlib convert` made it

Importing this file registers "wlib". vLLM starts worker processes that must import it too: name
`vllm_quantization:register` as an entry point of the group `vllm.general_plugins`.

Written against the interfaces that vLLM had in 2026: base_config.py of its commit 026bb17cfcc3 and
linear.py of 0036d38de46c. tests/test_integrations.py runs it with stand-ins for them, on a CPU. It
was never run inside vLLM, nor on a GPU, nor divided over several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import wlib
from wlib import layout
from wlib.formats.native import FORMAT_VERSION
from wlib.nn.replace import matches

try:
    from vllm.model_executor.layers.linear import (
        LinearBase,
        LinearMethodBase,
        UnquantizedLinearMethod,
    )
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.utils import set_weight_attrs
except ImportError as error:
    raise ImportError("this needs vLLM: pip install vllm") from error

NAME = "wlib"


@register_quantization_config(NAME)
class WlibConfig(QuantizationConfig):
    """What the layers of a model are.

    Args:
        group_size: columns that share a scale; divides what each rank has of every K.
        skip: layers to leave in 16 bits, as glob patterns of vLLM's names (qkv_proj, not q_proj).
        is_quantized: whether the checkpoint is wlib's own format instead of 16-bit weights.
        has_zero_point: whether such a checkpoint has zero points. One with k_permutation (act
            order) has a tensor that vLLM finds no place for, and is refused by it.
    """

    def __init__(
        self,
        group_size: int = 128,
        skip: Sequence[str] = (),
        is_quantized: bool = False,
        has_zero_point: bool = False,
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.skip = tuple(skip)
        self.is_quantized = is_quantized
        self.has_zero_point = has_zero_point

    def get_name(self) -> str:
        """The name it is registered under."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """What x may be."""
        return [torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Hopper; its successors cannot run sm_90a code, which wlib says when it is called."""
        return 90

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: everything stands in config.json, or in no file at all."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WlibConfig:
        """From a `quantization_config`; `format_version` tells wlib's own format.

        Raises:
            ValueError: a field or the version is unknown, or the group size is left open.
        """
        options = {key: value for key, value in config.items() if key != "quant_method"}
        version = options.pop("format_version", None)
        known = ("group_size", "skip", "has_zero_point")
        if unknown := sorted(options.keys() - set(known)):
            raise ValueError(f"expected only {', '.join(known)}, got {unknown[0]}")
        if version not in (None, FORMAT_VERSION):
            raise ValueError(f"expected format_version {FORMAT_VERSION}, got {version}")
        if version and "group_size" not in options:  # `convert` does not write it
            raise ValueError("expected the checkpoint's group_size, got none: use hf_overrides")
        return cls(is_quantized=version is not None, **options)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethodBase | None:
        """Ours for linear layers, unless they are skipped."""
        if not isinstance(layer, LinearBase):
            return None
        return UnquantizedLinearMethod() if matches(prefix, self.skip) else WlibLinearMethod(self)


class WlibLinearMethod(LinearMethodBase):
    """One linear layer: its weights as they are loaded, packed, and multiplied."""

    def __init__(self, config: WlibConfig) -> None:
        self.config = config

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make what vLLM's loader fills: a 16-bit weight, or the tensors of `wlib.Int4Weight`.

        Rows and columns are whole elements in all of them, so that vLLM can cut and fuse them.

        Raises:
            ValueError: the group size does not fit what this rank has of K.
        """
        n, k = sum(output_partition_sizes), input_size_per_partition
        size = self.config.group_size
        layout.check_group_size("vllm_quantization", k, size)
        tensors = {"weight": torch.empty(n, k, dtype=params_dtype)}
        if self.config.is_quantized:
            tensors = {
                "codes": torch.empty(n, k // 2, dtype=torch.uint8),
                "group_scale": torch.empty(n, k // size, dtype=torch.bfloat16),
                # Of layers that are fused, one may have it and another not: then it is 1.
                "channel_scale": torch.ones(n, dtype=torch.float32),
            }
            if self.config.has_zero_point:
                tensors["zero_point"] = torch.zeros(n, k // size, dtype=torch.float32)
        for name, tensor in tensors.items():
            parameter = nn.Parameter(tensor, requires_grad=False)
            dims = {"output_dim": 0, "input_dim": 1} if tensor.dim() == 2 else {"output_dim": 0}
            set_weight_attrs(parameter, dims | extra_weight_attrs)
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Replace what was loaded by the packed weight, where it lies."""
        size = self.config.group_size
        if self.config.is_quantized:
            fields = ("codes", "group_scale", "zero_point", "channel_scale")
            loaded = {name: getattr(layer, name).data for name in fields if hasattr(layer, name)}
            weight = wlib.Int4Weight(**loaded)
        else:
            loaded = {"weight": layer.weight.data}
            weight = wlib.Int4Weight.quantize(layer.weight, size, clip_search=True)
        for name in loaded:
            delattr(layer, name)
        packed = weight.pack()
        layer.packed_weight = nn.Parameter(packed.data, requires_grad=False)
        # Everything but the data, which vLLM may move.
        layer.packed_fields = (
            packed.n,
            packed.k,
            packed.group_size,
            packed.has_zero_point,
            packed.has_channel_scale,
        )

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias [..., N] in the dtype of x."""
        xq, x_scale = wlib.fp8_quantize(x.contiguous())
        packed = wlib.PackedInt4Weight(layer.packed_weight, *layer.packed_fields)
        return wlib.int4fp8_gemm(xq, packed, x_scale, bias, x.dtype, prefetch_weight=True)


def register() -> None:
    """For an entry point: importing this file is what registers."""
