"""A linear layer that is trained in FP4, as a function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._ops import fp4_linear as ops
from .errors import check_device, check_dtype, check_shape, refuse
from .fp4_recipe import FP4Recipe, as_recipe

_NAME = "wlib.fp4_linear"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def fp4_state(seed: int, device: torch.device | str | None = None) -> Tensor:
    """int64 [2]: a seed, and the step that every call of `fp4_linear` with gradients counts up."""
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def fp4_weight(w: Tensor, recipe: str | FP4Recipe) -> list[Tensor]:
    """W [N, K] as `fp4_linear` multiplies it, to be made once for many calls.

    Returns:
        A list of tensors for the argument `weight` of `fp4_linear` with the same recipe.
    """
    chosen = as_recipe(recipe)
    return ops.quantize_operand(w.detach(), chosen, chosen.square_weight)


def fp4_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    recipe: str | FP4Recipe = "wlib",
    state: Tensor | None = None,
    weight: Sequence[Tensor] | None = None,
) -> Tensor:
    """x W^T + bias with the matmuls of both passes as the recipe says.

    M, K and N may be any: operands are padded with zeros inside. What is saved for the backward
    pass are the packed codes and scales of x and W (`FP4Recipe.forward` says otherwise).

    Args:
        x: float32, float16 or bfloat16 [..., K].
        w: float32, float16 or bfloat16 [N, K].
        bias: of any of these [N], or None.
        recipe: a recipe or the name of one, see `FP4Recipe.named`.
        state: int64 [2] of `fp4_state` on the device of x: where signs and roundings come from.
            The call counts its step up, on the device, if gradients are enabled. Ranks that hold
            parts of one contraction need the same. May be None if the recipe draws nothing.
        weight: `fp4_weight(w, recipe)` of the present w, or None to quantise it here.

    Returns:
        [..., N] in the dtype of x or, as with nn.functional.linear, of the enclosing autocast.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or a device does not fit, or the state is missing.
        NotImplementedError: no kernel serves the device.
    """
    chosen = as_recipe(recipe)
    _check(x, w, bias, chosen, state)
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    out_dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    quantized = list(weight) if weight is not None else fp4_weight(w, chosen)
    if state is None:
        rng = torch.zeros(2, dtype=torch.int64, device=x.device)
    else:
        rng = torch.ops.wlib.fp4_next(state) if torch.is_grad_enabled() else state
    flat = x.reshape(-1, x.shape[-1])
    y = torch.ops.wlib.fp4_linear(flat, w, bias, quantized, rng, chosen.text, out_dtype)[0]  # type: ignore[attr-defined]
    result: Tensor = y.view(*x.shape[:-1], w.shape[0])
    return result


def _check(
    x: Tensor, w: Tensor, bias: Tensor | None, recipe: FP4Recipe, state: Tensor | None
) -> None:
    check_dtype(_NAME, "x", x, *_FLOATS)
    check_dtype(_NAME, "w", w, *_FLOATS)
    if w.dim() != 2:
        refuse(_NAME, "w of shape [N, K]", list(w.shape), "w")
    if x.dim() == 0 or x.shape[-1] != w.shape[1]:
        refuse(_NAME, f"x of shape [..., {w.shape[1]}]", list(x.shape), "x")
    check_device(_NAME, "w", w, x.device)
    if bias is not None:
        check_dtype(_NAME, "bias", bias, *_FLOATS)
        check_shape(_NAME, "bias", bias, [w.shape[0]])
        check_device(_NAME, "bias", bias, x.device)
    if state is None:
        if recipe.is_random:
            refuse(_NAME, f"a state for recipe '{recipe.name}'", None, "state")
        return
    check_dtype(_NAME, "state", state, torch.int64)
    check_shape(_NAME, "state", state, [2])
    check_device(_NAME, "state", state, x.device)
