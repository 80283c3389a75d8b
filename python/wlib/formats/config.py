"""Checked access to the `quantization_config` of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import refuse

_REQUIRED = object()
# Where quantisers that do not write into config.json keep theirs, and the method it implies.
_OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Names AWQ's own files have for what config.json calls otherwise.
_SYNONYMS = {"w_bit": "bits", "q_group_size": "group_size"}


class Config:
    """A JSON object whose values are taken by name; what does not fit is refused by that name."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def one_of(self, key: str, *allowed: object, default: object = _REQUIRED) -> Any:
        """The value of `key`, which must be one of `allowed`; ValueError if not."""
        value = self.values.get(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            got = "nothing" if value is _REQUIRED else json.dumps(value)
            self.refuse(" or ".join(map(json.dumps, allowed)), got, key)
        return value

    def integer(self, key: str) -> int:
        """The value of `key`, which must be an integer."""
        value = self.values.get(key)
        if type(value) is not int:
            self.refuse("an integer", json.dumps(value), key)
        return value

    def number(self, key: str) -> float:
        """The value of `key`, which must be a finite number."""
        value: Any = self.values.get(key)
        if type(value) not in (int, float) or not abs(value) < 2**63:  # nor is NaN
            self.refuse("a number", json.dumps(value), key)
        return float(value)

    def section(self, key: str) -> Config:
        """The object under `key`, which must be there."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            self.refuse("an object", json.dumps(value), key)
        return Config(value, f"{self.place}.{key}")

    def refuse(self, expected: str, got: object, key: str) -> NoReturn:
        """Raise ValueError naming `key`."""
        refuse("wlib.formats", expected, str(got)[:200], f"{self.place}.{key}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        refuse("wlib.formats", "JSON", f"{type(error).__name__}: {error}", path.name)
    if not isinstance(value, dict):
        refuse("wlib.formats", "a JSON object", type(value).__name__, path.name)
    return value


def find_config(folder: Path) -> Config | None:
    """How a checkpoint says it was quantised, with its `quant_method`; None if it does not."""
    path = folder / "config.json"
    values = read_json(path).get("quantization_config") if path.is_file() else None
    if values is not None:
        if not isinstance(values, dict):
            refuse("wlib.formats", "an object", values, "config.json: quantization_config")
        return Config(values, "config.json: quantization_config")
    for name, method in _OWN_FILES.items():
        if (folder / name).is_file():
            own = {_SYNONYMS.get(k, k): v for k, v in read_json(folder / name).items()}
            return Config({"quant_method": method, **own}, name)
    return None
