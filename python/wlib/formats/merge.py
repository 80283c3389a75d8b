"""Adding an adapter to the weights of a model, all layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import rebuild
from ..errors import check_dtype, refuse
from ..tucker import TuckerLayer, tucker_merge_many
from .adapter import Adapter
from .delta import Delta, LoraDelta, RebuildDelta, TuckerDelta

_NAME = "wlib.formats.merge_adapter"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class Merged:
    """What `merge_adapter` did, and the weights that were there before.

    Attributes:
        names: of the modules, in the order of the adapter.
    """

    names: tuple[str, ...]
    _kept: tuple[tuple[nn.Module, nn.Parameter, nn.Parameter], ...]  # module, before, after

    def unmerge(self) -> None:
        """Put the parameters back that the model had: the same objects, so the same bits.

        Raises:
            ValueError: another adapter was merged meanwhile, or the merge was in place.
        """
        where = "wlib.formats.Merged.unmerge"
        if not self._kept:
            refuse(where, "a merge that kept the weights", "one in place", "self")
        for name, (module, _, after) in zip(self.names, self._kept, strict=True):
            if module.weight is not after:
                refuse(where, "the weight that was merged", "another", name)
        for module, before, _ in self._kept:
            module.weight = before


@torch.no_grad()
def merge_adapter(
    model: nn.Module, adapter: Adapter, scale: float = 1.0, *, in_place: bool = False
) -> Merged:
    """Add an adapter to a model: weight + scale * delta, summed in float32 and rounded once.

    All LoRA, LoHa and LoKr layers on a device are one launch, those of FLoRA one per dimension of
    their cores. Everything is checked before anything is changed.

    Args:
        model: its modules have the adapter's names; names whose dots kohya's scripts made
            underscores are found as well.
        adapter: from `load_adapter`.
        scale: factor on top of the adapter's own scales; also negative.
        in_place: overwrite the weights, so that there is no second copy of them; what other modules
            share changes too, and nothing can be unmerged. Otherwise the modules get parameters
            of their own, and the result holds those they had.

    Returns:
        The names, and `unmerge`.

    Raises:
        TypeError: a weight is not floating point.
        ValueError: a module is missing or named twice, has no weight or one of another shape.
        NotImplementedError: no kernel serves the device of a weight.
    """
    if not math.isfinite(scale):
        refuse(_NAME, "a finite scale", scale, "scale")
    modules = _find(model, adapter)
    weights = [
        _weight(name, delta, module, in_place)
        for (name, delta), module in zip(adapter.deltas.items(), modules, strict=True)
    ]
    if in_place and len({id(weight) for weight in weights}) != len(weights):
        refuse(_NAME, "each weight once to overwrite it", "one under two names", "adapter")
    deltas = list(adapter.deltas.values())
    merged: dict[int, Tensor] = {}
    for device in dict.fromkeys(weight.device for weight in weights):
        own = [i for i, weight in enumerate(weights) if weight.device == device]
        on_device = [deltas[i].to(device) for i in own]
        bases = [weights[i].detach() for i in own]
        merged |= dict(zip(own, _merge(bases, on_device, scale, in_place), strict=True))
    if in_place:
        return Merged(tuple(adapter.deltas), ())
    kept = []
    for i, (module, weight) in enumerate(zip(modules, weights, strict=True)):
        after = nn.Parameter(merged[i], weight.requires_grad)
        module.weight = after
        kept.append((module, weight, after))
    return Merged(tuple(adapter.deltas), tuple(kept))


def _merge(
    bases: Sequence[Tensor], deltas: Sequence[Delta], scale: float, in_place: bool
) -> list[Tensor]:
    bases = [base.contiguous() for base in bases]
    outs = list(bases) if in_place else [torch.empty_like(base) for base in bases]
    calls, to = [], []
    layers, tucker_to = [], []
    for base, delta, out in zip(bases, deltas, outs, strict=True):
        if isinstance(delta, TuckerDelta):
            layers.append(TuckerLayer(base, delta.core, delta.factors, delta.scale * scale))
            tucker_to.append(out)
        elif isinstance(delta, RebuildDelta):
            calls.append(delta.call(base, scale))
            to.append(out)
    if calls:
        rebuild.merge_many(calls, to)
    if layers:
        tucker_merge_many(layers, tucker_to, in_first=True)
    return outs


def _find(model: nn.Module, adapter: Adapter) -> list[nn.Module]:
    modules = dict(model.named_modules())
    plain: dict[str, list[str]] = {}
    for name in modules:
        plain.setdefault(name.replace(".", "_"), []).append(name)
    found: dict[str, str] = {}  # module of the model -> of the adapter
    for name in adapter.deltas:
        choices = [name] if name in modules else plain.get(name, [])
        if len(choices) != 1:
            got = " and ".join(choices) or "none"
            refuse(_NAME, f"one module {name} in the model", got, name)
        if choices[0] in found:
            refuse(_NAME, f"one delta for {choices[0]}", f"also {found[choices[0]]}", name)
        found[choices[0]] = name
    return [modules[name] for name in found]


def _weight(name: str, delta: Delta, module: nn.Module, in_place: bool) -> nn.Parameter:
    """The weight of a module that a delta fits."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        refuse(_NAME, "a module with a weight", type(module).__name__, name)
    check_dtype(_NAME, f"{name}.weight", weight, *_FLOATS)
    if isinstance(delta, LoraDelta) and delta.transposed and isinstance(module, nn.Linear):
        # PEFT takes back fan_in_fan_out for such a layer; a square weight would not show it.
        refuse(_NAME, "a weight [in, out], as fan_in_fan_out says", "an nn.Linear", name)
    rows_and_columns = (weight.shape[0], weight[0].numel()) if weight.dim() > 1 else ()
    # A kernel may be missing, if its sizes are multiplied into the columns or all 1.
    if _trim(delta.shape) not in (_trim(weight.shape), rows_and_columns):
        refuse(_NAME, f"a delta of shape {list(weight.shape)}", list(delta.shape), name)
    if in_place and not weight.is_contiguous():
        refuse(_NAME, "a contiguous weight to overwrite", list(weight.stride()), name)
    return weight


def _trim(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without sizes of 1 at the end of a kernel."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
