"""Conversion of a checkpoint from one INT4 format to another, one layer in memory at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import refuse
from .base import Format, LayerKind
from .checkpoint import FORMATS, INDEX, Checkpoint
from .config import read_json
from .layer import WHERE
from .safetensors import SafetensorsWriter

SHARD_BYTES = 5 * 10**9
# What else a model's folder holds that its users need; pickles and other weights are none of it.
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md", ".py"}
_NOT_COPIED = {"config.json", "quantize_config.json", "quant_config.json", INDEX}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        layers: how many INT4 layers were converted.
        scale_error: upper bound of the relative error that rounding brought to any scale, and so
            to any weight; 0 if every scale was kept exactly.
        worst_layer: the layer it was found in; None if there was none.
        files: names of the safetensors files written.
    """

    layers: int
    scale_error: float
    worst_layer: str | None
    files: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    format_name: str,
    *,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Write a checkpoint's INT4 layers in another format, and everything else as it is.

    The target appears when it is complete: until then everything is written to a hidden folder
    next to it, which is removed if anything fails.

    Args:
        source: a safetensors file or a folder with one, or with an index of several.
        target: the folder to make; its parent must exist.
        format_name: one of `FORMATS`.
        force: replace a target that is there, if it is a checkpoint.
        shard_bytes: start a new file before one grows beyond this; a larger tensor stands alone.
        progress: called with the bytes read so far, the bytes to read and a tensor's name.

    Raises:
        OSError: reading or writing failed.
        TypeError, ValueError: the source is not sound, has no INT4 layers or does not fit the
            format, or the target may not be written.
    """
    if format_name not in FORMATS:
        refuse(WHERE, " or ".join(FORMATS), format_name, "format")
    checkpoint, path = Checkpoint(source), Path(target)
    if not checkpoint.layers:
        refuse(WHERE, "a checkpoint with INT4 layers", "none", str(source))
    _check_target(path, checkpoint.folder, force)
    with _appearing(path) as folder:
        run = _Run(checkpoint, FORMATS[format_name], _Shards(folder, shard_bytes))
        for name in checkpoint.entries:
            run.step(name)
            if progress:
                progress(run.done, run.total, name)
        files = run.shards.finish(run.format.metadata)
        _write_companions(checkpoint, folder, run)
    return Conversion(len(checkpoint.layers), run.scale_error, run.worst_layer, files)


class _Run:
    """What a conversion has read and found so far."""

    def __init__(self, checkpoint: Checkpoint, target: type[Format], shards: _Shards) -> None:
        self.checkpoint = checkpoint
        self.format = target
        self.shards = shards
        self.total = sum(entry.nbytes for entry in checkpoint.entries.values())
        self.done = 0
        self.kinds: set[LayerKind] = set()
        self.dense: list[str] = []
        self.scale_error = 0.0
        self.worst_layer: str | None = None
        self._converted: set[str] = set()

    def step(self, name: str) -> None:
        """Convert the layer of a tensor with its first tensor, or copy the tensor."""
        entry = self.checkpoint.entries[name]
        self.done += entry.nbytes
        layer = self.checkpoint.owner(name)
        if layer is None:
            self.shards.add(name, self.checkpoint.read(name))
            if name.endswith(".weight") and len(entry.shape) == 2:
                self.dense.append(name.removesuffix(".weight"))
        elif layer not in self._converted:
            self._converted.add(layer)
            self._convert(layer)

    def _convert(self, name: str) -> None:
        layer = self.checkpoint.load(name)
        tensors, error = self.format.write(layer, name)
        if layer.bias is not None:
            tensors["bias"] = layer.bias
        for field, tensor in tensors.items():
            self.shards.add(f"{name}.{field}", tensor)
        self.kinds.add(LayerKind.of(layer))
        error = (1 + error) * (1 + layer.scale_error) - 1
        if error > self.scale_error:
            self.scale_error, self.worst_layer = error, name


class _Shards:
    """Tensors on their way into one file or several."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._writers: list[SafetensorsWriter] = []
        self._nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        full = self._writers and self._writers[-1].nbytes + tensor.nbytes > self._limit
        if full or not self._writers:
            self._writers.append(SafetensorsWriter(self._folder))
        self._writers[-1].add(name, tensor)
        self._nbytes += tensor.nbytes

    def finish(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        count = len(self._writers)
        if count == 1:
            self._writers[0].finish(self._folder / "model.safetensors", metadata)
            return ("model.safetensors",)
        files = tuple(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count))
        weight_map = {}
        for writer, file in zip(self._writers, files, strict=True):
            weight_map.update(dict.fromkeys(writer.names, file))
            writer.finish(self._folder / file, metadata)
        index = {"metadata": {"total_size": self._nbytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2))
        return files


def _check_target(target: Path, source: Path, force: bool) -> None:
    if not target.parent.is_dir():
        refuse(WHERE, "a folder to write into", f"no folder {target.parent}", "target")
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        refuse(WHERE, "a target that does not exist, or force", f"{target}, which does", "target")
    here = target.resolve()
    if here == source.resolve() or here in source.resolve().parents:
        refuse(WHERE, "a target apart from the source", target, "target")
    # Replacing deletes: a mistyped path must not cost a folder that never was a checkpoint.
    if target.is_symlink() or not target.is_dir() or not any(target.glob("*.safetensors")):
        refuse(WHERE, "a target that is a checkpoint, to replace it", target, "target")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A hidden folder that becomes `target`, replacing it, or vanishes if the body fails."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(scratch / "old")
        try:
            folder.rename(target)
        except OSError:
            if (scratch / "old").exists():
                (scratch / "old").rename(target)
            raise
    finally:
        shutil.rmtree(scratch)


def _write_companions(checkpoint: Checkpoint, folder: Path, run: _Run) -> None:
    path = checkpoint.folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    config["quantization_config"] = run.format.write_config(run.kinds, sorted(run.dense))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if checkpoint.path.is_dir():
        for file in checkpoint.path.iterdir():
            kept = file.suffix in _COMPANIONS or file.name.startswith("LICENSE")
            if file.is_file() and kept and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
