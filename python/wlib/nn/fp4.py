"""A linear layer that is trained in FP4."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..fp4_linear import fp4_linear, fp4_state, fp4_weight
from ..fp4_recipe import FP4Recipe, as_recipe
from .replace import matches

_layers = itertools.count()


class _WeightCache:
    """The quantised weight of one version of one parameter.

    Only the parameter that the module itself holds is looked up by its version: under FSDP the
    forward pass sees another object, whose values change without a new version. The alias keeps
    the old memory, so that no other weight can take its address meanwhile.
    """

    def __init__(self, weight: Tensor) -> None:
        self._owned = weakref.ref(weight)
        self._alias: Tensor | None = None
        self._version = -1
        self._quantized: list[Tensor] = []

    def get(self, weight: Tensor, recipe: FP4Recipe) -> list[Tensor]:
        """fp4_weight(weight, recipe)."""
        capturing = weight.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._owned() is not weight or capturing or weight.is_inference():
            return fp4_weight(weight, recipe)
        alias = self._alias
        fresh = alias is not None and alias.data_ptr() == weight.data_ptr()
        if not fresh or self._version != weight._version:
            self._alias, self._version = weight.detach(), weight._version
            self._quantized = fp4_weight(weight, recipe)
        return self._quantized


class FP4Linear(nn.Linear):
    """nn.Linear whose matmuls run in FP4 in both passes, by `wlib.fp4_linear`.

    Parameters, initialisation and checkpoints are those of nn.Linear; `state_dict` also holds the
    buffer `fp4_state`, which may be absent when one is loaded. The weight is quantised once per
    version of the parameter, that is once per optimiser step however many micro-batches there are;
    under torch.compile, in a CUDA graph and under FSDP in every forward pass. Writes through
    `weight.data` have no version: call `forget_quantized` after them.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear.
        recipe: a `wlib.FP4Recipe` or the name of one.
        seed: of signs and roundings; default: how many layers this process has made before, the
            same on all ranks that build the same model. `seed_fp4` numbers those of a model.

    Attributes:
        recipe: the recipe.
        fp4_state: int64 [2], the seed and the step, which every forward pass with gradients counts
            up; with activation checkpointing the second one draws anew.

    Raises:
        ValueError: there is no recipe of this name.
    """

    fp4_state: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        recipe: str | FP4Recipe = "wlib",
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.recipe = as_recipe(recipe)
        number = next(_layers) if seed is None else seed
        self.register_buffer("fp4_state", fp4_state(number, device))
        self.forget_quantized()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, recipe: str | FP4Recipe = "wlib", *, seed: int | None = None
    ) -> FP4Linear:
        """A layer that shares the parameters of a linear layer."""
        bias, device = linear.bias is not None, linear.weight.device
        module = cls(linear.in_features, linear.out_features, bias, recipe, seed=seed,
                     device="meta")  # fmt: skip
        module.weight, module.bias = linear.weight, linear.bias
        module.fp4_state = fp4_state(next(_layers) if seed is None else seed, device)
        module.forget_quantized()
        return module.train(linear.training)

    @staticmethod
    def select(names: Sequence[str], recipe: str | FP4Recipe = "wlib", **_: Any) -> list[str]:
        """Of a model's linear layers in order, those that the recipe does not leave alone."""
        chosen = as_recipe(recipe)
        kept = names[: max(0, len(names) - chosen.skip_last)]
        return [name for name in kept if not matches(name, chosen.skip)]

    def forget_quantized(self) -> None:
        """Quantise the weight again in the next forward pass."""
        self._quantized = _WeightCache(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., K]; errors as of `wlib.fp4_linear`."""
        weight = None
        if not torch.compiler.is_compiling():
            weight = self._quantized.get(self.weight, self.recipe)
        state = self.fp4_state
        return fp4_linear(x, self.weight, self.bias, recipe=self.recipe, state=state, weight=weight)

    def extra_repr(self) -> str:
        """The arguments of the constructor, as `print` shows them."""
        return f"{super().extra_repr()}, recipe={self.recipe.name}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_quantized"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.forget_quantized()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FP4Linear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.forget_quantized()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}fp4_state", self.fp4_state)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.forget_quantized()


def seed_fp4(model: nn.Module, seed: int = 0) -> int:
    """Give the FP4 layers of a model seeds of their own, and step 0.

    The layers of two models with the same structure, on two ranks or in two runs, then draw the
    same signs and roundings.

    Returns:
        How many layers there are.
    """
    layers = [module for module in model.modules() if isinstance(module, FP4Linear)]
    for number, layer in enumerate(layers):
        layer.fp4_state.copy_(fp4_state((seed << 20) + number))
    return len(layers)
