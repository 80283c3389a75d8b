"""INT4 weights and FP8 activations in any transformers model, as it is loaded.

    from transformers import AutoModelForCausalLM
    from transformers_quantizer import WlibConfig

    config = WlibConfig(group_size=128)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16", quantization_config=config)

loads the weights as they are and then replaces the linear layers by `wlib.nn.Int4Fp8Linear`,
rounded to nearest. Importing this file registers "wlib" with transformers; it has been run with
transformers 4.57.6 and 5.24.0, on a CPU. A checkpoint that is INT4 already is for
`wlib.formats.load_model`, and weights rounded with calibration for `wlib.quant.quantize_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from wlib.nn import Int4Fp8Linear, replace_linear

try:
    from transformers.quantizers import (
        HfQuantizer,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("this needs transformers >= 4.57: pip install transformers") from error

NAME = "wlib"


@register_quantization_config(NAME)
class WlibConfig(QuantizationConfigMixin):
    """How to quantise.

    Args:
        group_size: columns that share a scale: 32, 64 or a multiple of 128 that divides every K.
        skip: layers to leave, as glob patterns of the dotted name or of its last parts.
        clip_search: the scale of least squared error instead of absmax/8; slower to load.
    """

    def __init__(
        self,
        group_size: int = 128,
        skip: Sequence[str] = ("lm_head",),
        clip_search: bool = True,
        quant_method: str = NAME,
    ) -> None:
        self.quant_method = quant_method
        self.group_size = group_size
        self.skip = list(skip)  # as JSON gives it back
        self.clip_search = clip_search


@register_quantizer(NAME)
class WlibQuantizer(HfQuantizer):
    """Replaces the linear layers once their weights are there."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse checkpoints that are quantised already.

        Raises:
            ValueError: the model's own config says "wlib".
        """
        if self.pre_quantized:
            raise ValueError(
                "expected weights that are not quantised, got a checkpoint of wlib: "
                "wlib.formats.load_model fills a model from it"
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        away = [name for name, tensor in model.named_parameters() if tensor.is_meta]
        if away:
            raise ValueError(f"expected every weight in memory, got {away[0]} offloaded")
        config = self.quantization_config
        options = {"group_size": config.group_size, "clip_search": config.clip_search}
        replace_linear(model, Int4Fp8Linear, config.skip, **options)
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """Not by `save_pretrained`: transformers could not load the layers again."""
        return False

    @property
    def is_trainable(self) -> bool:
        """The layers have no gradients."""
        return False
