"""Replacing the linear layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn


class LinearClass(Protocol):
    """A module class that can be made from a linear layer."""

    def from_linear(self, linear: nn.Linear, **options: Any) -> nn.Module:
        """The replacement of `linear`."""


def replace_linear(
    model: nn.Module, cls: LinearClass, skip: Sequence[str] = (), **options: Any
) -> list[str]:
    """Replace the `nn.Linear` layers inside a model, in place.

    A layer used under several names stays shared. Subclasses of nn.Linear
    are left alone, since their owners rely on more than the forward pass. Every layer is converted
    before the first one is replaced: if one is refused, the model is unchanged.

    Args:
        model: the model.
        cls: `wlib.nn.Int4Fp8Linear`, `wlib.nn.FP4Linear` or another class with `from_linear`; its
            `select`, if it has one, says which of the names to replace.
        skip: names of layers to leave, as glob patterns of the dotted name or of its last parts
            ("lm_head", "layers.0.*").
        options: keyword arguments for `cls.from_linear`, such as group_size.

    Returns:
        The dotted names of the replaced layers, in the model's order.

    Raises:
        ValueError: the model is itself a linear layer, or `cls` cannot take a layer that `skip`
            does not name; the message lists every such layer and why.
    """
    if type(model) is nn.Linear:
        raise ValueError("replace_linear: a lone nn.Linear has no parent, use from_linear instead")
    converted: dict[nn.Module, nn.Module] = {}
    refused: dict[str, ValueError] = {}
    names = []
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is not nn.Linear or matches(name, skip):
            continue
        names.append(name)
    select = getattr(cls, "select", None)
    names = names if select is None else select(names, **options)
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        try:
            if module not in converted:
                converted[module] = cls.from_linear(module, **options)
        except ValueError as error:
            refused[name] = error
    if refused:
        lines = "".join(f"\n  {name}: {error}" for name, error in refused.items())
        raise ValueError(f"replace_linear: name these layers in skip or change the options:{lines}")
    for name in names:
        model.set_submodule(name, converted[model.get_submodule(name)])
    return names


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a glob pattern fits a dotted name or its last parts."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)
