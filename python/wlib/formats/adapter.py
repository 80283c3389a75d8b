"""Adapters on disk: PEFT's, those of LyCORIS and kohya's scripts, and FLoRA's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import refuse
from . import peft
from .checkpoint import open_files
from .config import Config, read_json
from .delta import FLORA, LAYOUTS, LOCON, LOHA, LOKR, Delta, Layout
from .layer import FLOATS, WHERE, LayerTensors
from .safetensors import SafetensorsFile

_LAYOUT_OF = {field: layout for layout in LAYOUTS for field in layout.fields}
_WITH_ALPHA = (LOCON, LOHA, LOKR)
_ALPHA = "alpha"
_NUMBERS = (*FLOATS, torch.float64, torch.int64, torch.int32)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file adds to the weights of a model.

    Attributes:
        format: "peft", "lycoris" or "flora".
        deltas: a `LoraDelta`, `LohaDelta`, `LokrDelta` or `TuckerDelta` by the name of its module,
            on the CPU, scale included.
    """

    format: str
    deltas: Mapping[str, Delta]


def load_adapter(path: str | Path, prefix: str = "") -> Adapter:
    """Read an adapter from safetensors; its kind is found from its config and its tensors' names.

    - PEFT: a folder with `adapter_config.json`, or the file beside one. LoRA, also rank-stabilised,
      of linear layers, convolutions and embeddings, LoHa and LoKr; `rank_pattern` and
      `alpha_pattern` count. The names are those without "base_model.model.".
    - LyCORIS and kohya's scripts: a file, or a folder with one. LoRA and LoCon, LoHa, LoKr, with
      cores or without; a module without `alpha`, or with 0, has alpha = rank. Files do not say that
      they were trained with `rs_lora`: multiply by sqrt(rank) when merging.
    - FLoRA (arXiv 2405.14739): a file with `flora_layer.param_G`, `param_0`, ... of each module.
      Files do not hold its scale: give it when merging.

    Args:
        path: file or folder. Pickles are never opened.
        prefix: read only modules whose name begins with it, and cut it off: "lora_unet_".

    Raises:
        OSError: a file cannot be read.
        TypeError, ValueError: a header, a field of the config, a tensor's name, dtype or shape is
            wrong, unknown or missing; the message names it.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    is_peft = (folder / peft.CONFIG).is_file() and (path.is_dir() or path.name == peft.WEIGHTS)
    files = open_files(folder / peft.WEIGHTS if is_peft else path)
    entries = {name: file for file in files for name in file.entries}
    if is_peft:
        config = peft.Peft(Config(read_json(folder / peft.CONFIG), peft.CONFIG))
        return _read("peft", entries, config.read, peft.PREFIX, prefix)
    format_name = "flora" if any(FLORA is _split(name)[2] for name in entries) else "lycoris"
    return _read(format_name, entries, _read_unconfigured, "", prefix)


def _read(
    format_name: str,
    files: Mapping[str, SafetensorsFile],
    read: Callable[[Layout, LayerTensors], Delta],
    outer: str,
    prefix: str,
) -> Adapter:
    fields: dict[str, dict[str, str]] = {}  # module -> field -> name of the tensor
    layouts: dict[str, Layout] = {}
    for name in files:
        if not name.startswith(outer):
            refuse(WHERE, f"a name that begins with {outer}", name, name)
        module, field, layout = _split(name.removeprefix(outer))
        if not module.startswith(prefix):
            continue
        module = module.removeprefix(prefix)
        fields.setdefault(module, {})[field] = name
        if layout is not None and layouts.setdefault(module, layout) is not layout:
            refuse(WHERE, f"only tensors of {layouts[module].name} in {module}", field, name)
    if not fields:
        refuse(WHERE, f"modules whose names begin with {prefix!r}", "none", "prefix")
    deltas = {}
    for module, own in fields.items():
        layout = layouts.get(module)
        if _ALPHA in own and (format_name == "peft" or layout not in _WITH_ALPHA):
            expected = " or ".join(known.name for known in _WITH_ALPHA) + " beside it"
            refuse(WHERE, expected, layout.name if layout else "nothing", own[_ALPHA])
        assert layout  # of all fields only alpha has none
        tensors = {field: files[name].read(name) for field, name in own.items()}
        deltas[module] = read(layout, LayerTensors(module, tensors))
    return Adapter(format_name, deltas)


def _split(name: str) -> tuple[str, str, Layout | None]:
    """Module, field and layout of a tensor; no layout for alpha, which several have."""
    parts = name.rsplit(".", 2)
    for count in (1, 2):
        module, field = ".".join(parts[:-count]), ".".join(parts[-count:])
        if module and (field in _LAYOUT_OF or field == _ALPHA):
            return module, field, _LAYOUT_OF.get(field)
    known = ", ".join(layout.name for layout in LAYOUTS)
    refuse(WHERE, f"a tensor of {known}", name, name)


def _read_unconfigured(layout: Layout, tensors: LayerTensors) -> Delta:
    if layout is FLORA:
        return layout.read(tensors, lambda _: 1.0)
    if layout not in _WITH_ALPHA:
        tensors.refuse(f"{peft.CONFIG} to know the scale", "none", min(layout.fields))
    alpha = tensors.find(_ALPHA, _NUMBERS, None)
    if alpha is not None and (alpha.numel() != 1 or not alpha.isfinite().all()):
        tensors.refuse("one finite number", alpha.flatten()[:4].tolist(), _ALPHA)
    value = 0.0 if alpha is None else float(alpha)
    # LoKr with two whole factors has no rank, and no scale.
    return layout.read(tensors, lambda rank: value / rank if rank and value else 1.0)
