"""One weight, quantised by a recipe."""

from __future__ import annotations

from torch import Tensor

from .. import layout
from ..errors import refuse
from ..group_scale import ScaleGrid, choose_scale, round_codes
from ..int4fp8 import Int4Weight
from .gptq import error_feedback, refine
from .moments import Moments
from .recipe import Recipe

_NAME = "wlib.quant.quantize_weight"


def quantize_weight(
    w: Tensor, recipe: Recipe, moments: Moments | None = None, *, centred: bool = False
) -> Int4Weight:
    """Quantise a weight.

    Args:
        w: floating point [N, K], finite.
        recipe: how; `channel_scaling` and `skip` concern models only.
        moments: of the layer's inputs, needed for GPTQ; they weight the search for scales, too.
        centred: whether a bias will absorb the mean output error, so that only the inputs'
            spread about their mean counts.

    Raises:
        ValueError: w is not a finite matrix, the group size does not fit K, or GPTQ lacks moments.

    Warns:
        ScaleUnderflowWarning: scales lie below the smallest normal value of their format.
    """
    if w.dim() != 2 or w.numel() == 0:
        refuse(_NAME, "w of shape [N, K]", list(w.shape), "w")
    n, k = w.shape
    layout.check_group_size(_NAME, k, recipe.group_size)
    w = w.detach().float()
    groups = w.view(n, -1, recipe.group_size)
    absmax = groups.abs().amax(dim=2)
    if not absmax.isfinite().all():
        refuse(_NAME, "w finite in float32", f"{int((~w.isfinite()).sum())} NaN or Inf", "w")
    grid = ScaleGrid.fit(absmax, recipe.scale_format, recipe.outer_scale)
    if recipe.rounding == "gptq":
        if moments is None:
            refuse(_NAME, "moments for GPTQ", None, "moments")
        metric = moments.metric(centred, recipe.damping)
        codes, scale = error_feedback(w, metric, recipe.scale_rule, grid, recipe.group_size)
        for _ in range(recipe.refinements):
            codes, scale = refine(w, metric, codes, scale, grid)
    else:
        importance = None
        if moments is not None:
            diagonal = moments.second(centred).diagonal().float()
            importance = diagonal.view(-1, recipe.group_size)
        scale = choose_scale(groups, recipe.scale_rule, grid, importance)
        codes = round_codes(groups, scale[..., None]).view(n, k)
    return Int4Weight.from_codes(codes, scale, grid)
