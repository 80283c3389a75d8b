"""Filling a model from an INT4 checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import refuse
from .checkpoint import Checkpoint
from .layer import WHERE


def load_model(model: nn.Module, source: str | Path) -> list[str]:
    """Fill a model in place; the INT4 layers of the checkpoint become `wlib.nn.Int4Fp8Linear`.

    One layer is in memory twice at a time. Names and shapes are compared before anything is
    changed; if a tensor's contents are refused later, the model is left partly filled.

    Args:
        model: a model whose modules have the checkpoint's names, such as one a library built from
            the checkpoint's `config.json`, with `nn.Linear` where the checkpoint has INT4 layers.
            What it shares between two names may be stored under one of them.
        source: as in `Checkpoint`.

    Returns:
        The names of the INT4 layers.

    Raises:
        OSError: a file cannot be read.
        TypeError, ValueError: the checkpoint is not sound, or its names or shapes are not the
            model's; the message names the tensor.
    """
    checkpoint = Checkpoint(source)
    linears = {name: _linear(model, name) for name in checkpoint.layers}
    state = model.state_dict()
    for name in linears:
        for field in ("weight", "bias"):
            state.pop(f"{name}.{field}", None)
    stored = {name for name in checkpoint.entries if checkpoint.owner(name) is None}
    loaded = {state[name].data_ptr() for name in stored & state.keys()}
    for name, tensor in state.items():
        if name not in stored and tensor.data_ptr() not in loaded:
            refuse(WHERE, f"a tensor {name}, as the model has", "none", name)
    for name in stored:
        got = list(checkpoint.entries[name].shape)
        if name not in state or list(state[name].shape) != got:
            expected = list(state[name].shape) if name in state else "a name the model has"
            refuse(WHERE, f"{expected}", got, name)
    for name in stored:
        state[name].copy_(checkpoint.read(name))
    for name, linear in linears.items():
        layer = checkpoint.load(name)
        shape, has_bias = [layer.weight.n, layer.weight.k], layer.bias is not None
        if shape != list(linear.weight.shape) or has_bias != (linear.bias is not None):
            refuse(WHERE, f"the shape of {linear}", f"{shape}, bias={has_bias}", name)
        module = layer.linear().to(linear.weight.device).train(linear.training)
        model.set_submodule(name, module)
    return list(linears)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        refuse(WHERE, "a name the model has", name, name)
    if not isinstance(module, nn.Linear):
        refuse(WHERE, "an nn.Linear in the model", type(module).__name__, name)
    return module
