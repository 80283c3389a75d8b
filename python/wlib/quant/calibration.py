"""Running a model on calibration batches to see what reaches its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Arguments of the model: one tensor, positional arguments, or keyword arguments.
Batch = Tensor | Sequence[Any] | Mapping[str, Any]


class _InputSeen(Exception):
    """Ends a forward pass that has shown what it was run for."""


def linear_layer(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of a name that is known to be one."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def forward(model: nn.Module, batch: Batch) -> Any:
    """The model applied to a batch."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def tokens(x: Tensor, batch: Batch) -> Tensor:
    """Activations [..., C] as a list of tokens [T, C], without those an attention mask excludes.

    A batch of keyword arguments may hold the mask, `attention_mask`, in the shape [...].
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.shape == x.shape[:-1]:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


@contextmanager
def watched(
    model: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within this context, `see(name, input)` is called whenever a named layer is."""

    def watch(name: str) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(name, args[0].detach())

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_inputs(model: nn.Module, name: str, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Inputs [T, K] of a layer, per batch; a forward pass ends at the layer's first call."""
    seen = []

    def see(name: str, x: Tensor) -> None:
        seen.append(x)
        raise _InputSeen

    for batch in batches:
        with watched(model, [name], see), suppress(_InputSeen):
            forward(model, batch)
        if seen:
            yield tokens(seen.pop(), batch)


def samples(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], rows: int
) -> dict[str, Tensor]:
    """Inputs [T, K] of layers, about `rows` of them spread over the batches; one pass for all.

    Layers that no batch reaches are missing.
    """
    share = -(-rows // len(batches))
    found: dict[str, list[Tensor]] = {}
    for batch in batches:

        def see(name: str, x: Tensor, batch: Batch = batch) -> None:
            found.setdefault(name, []).append(tokens(x, batch)[:share])

        with watched(model, names, see):
            forward(model, batch)
    return {name: torch.cat(kept) for name, kept in found.items()}


def stages(model: nn.Module, names: Sequence[str], batch: Batch) -> list[list[str]]:
    """Layers in the order they are first called, those called with the same tensor together.

    Layers that the batch does not reach are missing.
    """
    inputs: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        inputs.setdefault(name, x)

    with watched(model, names, see):
        forward(model, batch)
    together: dict[tuple[int, ...], list[str]] = {}
    for name, x in inputs.items():
        place = (x.data_ptr(), *x.shape, *x.stride())  # unique, as `inputs` keeps them all
        together.setdefault(place, []).append(name)
    return list(together.values())
