"""What a quantisation does, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import refuse
from ..group_scale import OuterScale, ScaleFormat, ScaleRule

Rounding = Literal["nearest", "gptq"]
ChannelScaling = Literal["none", "absmax", "absmean", "awq"]
_NAME = "wlib.quant.Recipe"


@dataclass(frozen=True)
class Recipe:
    """How linear layers become INT4. Nothing in it is random: same input, same bits.

    Attributes:
        group_size: columns that share a scale: 32, 64, a multiple of 128, or K if 32 divides it.
        scale_rule: "absmax/8", "absmax/7.5", "absmax/7", or "mse", the search for the scale of
            least squared error (weighted by the inputs' second moments, given calibration).
        scale_format: "bf16", "fp16", "fp32" or "e4m3", see `wlib.group_scale`.
        outer_scale: what keeps E4M3 scales out of the subnormals: a float32 scale per row
            ("channel"), a power of two ("tensor", as in FireQ), or "none".
        channel_scaling: factors on the input channels, folded into the layer before: 1/absmax or
            1/absmean of the channel's weights (FireQ, arXiv 2505.20839), or a search over powers
            of the mean activation ("awq", arXiv 2306.00978).
        rounding: "nearest", or "gptq": columns in turn, each error fed into the columns that
            follow (arXiv 2210.17323), then refined.
        damping: what GPTQ adds to the diagonal of the second moments, as a share of its mean.
        refinements: rounds after GPTQ of least-squares scales and one descent over the codes.
        skip: layers to leave, as glob patterns of the dotted name or its last parts.

    Raises:
        ValueError: a field has a value it cannot have.
    """

    group_size: int = 128
    scale_rule: ScaleRule = "mse"
    scale_format: ScaleFormat = "bf16"
    outer_scale: OuterScale = "channel"
    channel_scaling: ChannelScaling = "none"
    rounding: Rounding = "nearest"
    damping: float = 0.05
    refinements: int = 2
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {
            "scale_rule": ScaleRule,
            "scale_format": ScaleFormat,
            "outer_scale": OuterScale,
            "channel_scaling": ChannelScaling,
            "rounding": Rounding,
        }
        for field, choice in choices.items():
            value = getattr(self, field)
            if value not in get_args(choice):
                refuse(_NAME, f"{field} in {get_args(choice)}", repr(value), field)
        if not self.damping > 0:
            refuse(_NAME, "damping > 0", self.damping, "damping")
        if self.refinements < 0:
            refuse(_NAME, "refinements >= 0", self.refinements, "refinements")

    @property
    def data_free(self) -> Recipe:
        """The same without what looks at activations."""
        return replace(self, rounding="nearest", channel_scaling="none")

    @property
    def needs_calibration(self) -> bool:
        """Whether the recipe looks at activations."""
        return self.rounding == "gptq" or self.channel_scaling == "awq"
