"""A checkpoint on disk, its tensors read one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import refuse
from .awq import Awq
from .base import Format
from .compressed_tensors import CompressedTensors
from .config import Config, find_config, read_json
from .fireq import FireQ
from .gptq import Gptq
from .layer import WHERE, Int4Layer, LayerTensors
from .native import Native
from .safetensors import Entry, SafetensorsFile

FORMATS: Mapping[str, type[Format]] = {
    kind.name: kind for kind in (Native, CompressedTensors, Gptq, Awq, FireQ)
}
INDEX = "model.safetensors.index.json"
_VERSION = "wlib_format_version"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


class Checkpoint:
    """A model's tensors in one safetensors file or in a folder of them.

    Opening reads and checks every header, `config.json` and the index, and no tensor. Pickles are
    never opened.

    Attributes:
        path: the file or folder.
        folder: where its `config.json` is looked for.
        format: how INT4 layers are stored; None if there are none.
        layers: names of the INT4 layers, in the order of the files.
        entries: dtype and shape of every tensor by its full name.

    Raises:
        OSError: a file cannot be read.
        ValueError: a header, the index or the config is wrong or unknown; the message names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        files = open_files(self.path)
        self._file_of = {name: file for file in files for name in file.entries}
        self.entries: dict[str, Entry] = {n: f.entries[n] for n, f in self._file_of.items()}
        self.format = self._find_format(files)
        self._fields: dict[str, list[str]] = {}
        if self.format:
            suffix = f".{self.format.key}"
            names = (n.removesuffix(suffix) for n in self.entries if n.endswith(suffix))
            self._fields = {name: [] for name in names}
        self._sort_by_layer()
        self.layers = tuple(self._fields)

    def load(self, layer: str) -> Int4Layer:
        """Read an INT4 layer.

        Raises:
            KeyError: there is no such layer.
            TypeError, ValueError: a tensor does not fit the format; the message names it.
        """
        tensors = {field: self.read(f"{layer}.{field}") for field in self._fields[layer]}
        assert self.format  # or there would be no layer
        return self.format.read(LayerTensors(layer, tensors))

    def read(self, name: str) -> Tensor:
        """Read a tensor by its full name, as it is stored."""
        return self._file_of[name].read(name)

    def owner(self, name: str) -> str | None:
        """The INT4 layer a tensor is part of, or None."""
        layer, _, _ = name.rpartition(".")
        return layer if layer in self._fields else None

    def _sort_by_layer(self) -> None:
        # A tensor the format does not know would change what the layer computes.
        for name in self.entries:
            layer, _, field = name.rpartition(".")
            if self.format and layer in self._fields:
                if field not in self.format.fields:
                    expected = f"only {', '.join(sorted(self.format.fields))} in {layer}"
                    refuse(WHERE, expected, field, name)
                self._fields[layer].append(field)

    def _find_format(self, files: list[SafetensorsFile]) -> Format | None:
        config = find_config(self.folder)
        if config is None:
            if any(_VERSION in file.metadata for file in files):
                config = Config({"quant_method": Native.name, "format_version": 1}, "metadata")
            elif self._looks_like_fireq():
                config = Config({"quant_method": FireQ.name}, "tensors")
            else:
                return None
        method = config.one_of("quant_method", *FORMATS)
        found = FORMATS[method].from_config(config)
        if method == Native.name:
            expected = Native.metadata[_VERSION]
            for file in files:
                got = file.metadata.get(_VERSION, "nothing")
                if got != expected:
                    refuse(WHERE, expected, got, f"{file.path.name}: __metadata__.{_VERSION}")
        return found

    def _looks_like_fireq(self) -> bool:
        # Its checkpoints carry no config; weights of integers next to scales are theirs alone.
        for name in self.entries:
            weight = self.entries.get(name.removesuffix("_scale"))
            if name.endswith(".weight_scale") and weight:
                return weight.dtype in (torch.int8, torch.int32)
        return False


def open_files(path: Path) -> list[SafetensorsFile]:
    """The file, or the files of a folder, with their headers checked; never a pickle."""
    if path.suffix in _PICKLES:
        refuse(WHERE, "a safetensors file (pickles can run code)", path.name, "path")
    if path.is_file():
        return [SafetensorsFile(path)]
    if not path.is_dir():
        refuse(WHERE, "a file or folder", f"nothing at {path}", "path")
    if (path / INDEX).is_file():
        return _open_indexed(path)
    single = path / "model.safetensors"
    files = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        got = ", ".join([file.name for file in files] or pickles) or "neither"
        refuse(WHERE, f"{INDEX} or one .safetensors file (pickles can run code)", got, "path")
    return [SafetensorsFile(files[0])]


def _open_indexed(folder: Path) -> list[SafetensorsFile]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(WHERE, "an object of file names", weight_map, f"{INDEX}: weight_map")
    listed: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and "/" not in name and "\\" not in name
        if not plain or not name.endswith(".safetensors"):  # no way out of the folder, no pickles
            refuse(WHERE, "the name of a .safetensors file", name, f"{INDEX}: {tensor}")
        listed.setdefault(name, set()).add(tensor)
    files = []
    for name in sorted(listed):
        if not (folder / name).is_file():
            refuse(WHERE, f"a file {name}", "none", INDEX)
        files.append(SafetensorsFile(folder / name))
        differing = listed[name] ^ files[-1].entries.keys()
        if differing:
            expected = f"{name} to hold the tensors the index lists"
            refuse(WHERE, expected, "others", f"{INDEX}: {min(differing)}")
    return files
