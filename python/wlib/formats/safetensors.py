"""Strict reading and streamed writing of safetensors files.

A file is a little-endian uint64 length, a JSON header of that length and the tensors' bytes.
Headers come from strangers, so nothing in one is believed before it is checked against the file: a
tensor is read only if every entry of the header fits together.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import refuse

MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor; `start` and `stop` are offsets into the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start


class SafetensorsFile:
    """The tensors of a file, read one at a time.

    Attributes:
        path: the file.
        entries: every tensor by name, in the order of their bytes.
        metadata: the header's own strings.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header lies or the file is cut short; the message names the entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                self._refuse(f"a header inside a file of {size} bytes", f"{length} bytes", "length")
            header = self._parse(file.read(length))
        self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", {}))
        base = 8 + length
        entries = {name: self._entry(name, value, base) for name, value in header.items()}
        self.entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
        position = base
        for name, entry in self.entries.items():  # bytes no tensor owns could hide anything
            if entry.start != position:
                got = [entry.start - base, entry.stop - base]
                self._refuse(f"data_offsets that begin at {position - base}", got, name)
            position = entry.stop
        if position != size:
            self._refuse(f"{position} bytes as the header says", f"{size} bytes", "file size")

    def read(self, name: str) -> Tensor:
        """The tensor of this name, in memory of its own.

        Raises:
            ValueError: the file ended before the tensor did.
        """
        entry = self.entries[name]
        data = torch.empty(entry.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            rest: Any = data.numpy()
            while len(rest) and (count := file.readinto(rest)):  # a read may give less than asked
                rest = rest[count:]
        if len(rest):
            self._refuse(f"{entry.nbytes} bytes", f"{entry.nbytes - len(rest)} bytes", name)
        return data.view(entry.dtype).reshape(entry.shape)

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text.decode(), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            self._refuse("a JSON header", f"{type(error).__name__}: {error}", "header")
        if not isinstance(header, dict):
            self._refuse("a JSON object", type(header).__name__, "header")
        return header

    def _metadata(self, value: object) -> dict[str, str]:
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            return value
        self._refuse("an object of strings", value, "__metadata__")

    def _entry(self, name: str, value: object, base: int) -> Entry:
        if not name.isprintable():  # lone surrogates and control characters
            self._refuse("a printable name", ascii(name), "header")
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            self._refuse("an object of dtype, shape and data_offsets", value, name)
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self._refuse(f"dtype to be one of {', '.join(DTYPES)}", dtype, name)
        if not _sizes(shape):
            self._refuse("shape to be a list of sizes", shape, name)
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        if not _sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
            expected = f"data_offsets {nbytes} bytes apart for {dtype} {shape}"
            self._refuse(expected, offsets, name)
        return Entry(DTYPES[dtype], tuple(shape), base + offsets[0], base + offsets[1])

    def _refuse(self, expected: str, got: object, what: str) -> NoReturn:
        refuse("wlib.formats", expected, str(got)[:200], f"{self.path.name}: {what}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name appears twice")
    return names


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


class SafetensorsWriter:
    """Writes a file of tensors that come one at a time.

    The header stands in front of the tensors, yet is known only after the last one. The bytes
    wait in an unnamed file in the same folder, whose blocks vanish with the process.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, closed by `finish`
        self._entries: dict[str, Entry] = {}  # with offsets into _spool
        self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a CPU tensor; ValueError if the name is taken."""
        if name in self._entries:
            refuse("wlib.formats", "one tensor of each name", "two", name)
        octets: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._spool.write(octets)
        start, self.nbytes = self.nbytes, self.nbytes + tensor.nbytes
        self._entries[name] = Entry(tensor.dtype, tuple(tensor.shape), start, self.nbytes)

    @property
    def names(self) -> Iterator[str]:
        """The tensors added so far."""
        return iter(self._entries)

    def finish(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; the widest dtypes come first, which aligns every tensor to its own."""
        entries = dict(sorted(self._entries.items(), key=lambda item: -item[1].dtype.itemsize))
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, entry in entries.items():
            header[name] = {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [offset, offset + entry.nbytes],
            }
            offset += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("xb") as file, self._spool as spool:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in entries.values():
                spool.seek(entry.start)
                _copy(spool, file, entry.nbytes)


def _copy(source: Any, target: Any, nbytes: int) -> None:
    while nbytes:
        block = source.read(min(nbytes, _COPY_BYTES))
        target.write(block)
        nbytes -= len(block)
