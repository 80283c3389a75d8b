"""Writes docs/api.md, every public name with its signature and docstring: `make docs`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
MODULES = ("wlib", "wlib.rebuild", "wlib.nn", "wlib.quant", "wlib.formats", "wlib.parallel")
HEADER = """\
# API reference

Written by `make docs` from the docstrings.
"""


def public_names(module: ModuleType) -> list[str]:
    """The names in `__all__`, or else the functions and classes that the module itself defines."""
    names: list[str] = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return sorted(name for name in names if not inspect.ismodule(getattr(module, name)))


def signature(value: Any) -> str:
    """The parameters as written, a line each if there are many; no types that only mypy reads."""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are strings
    return text.replace("torch.Tensor", "Tensor").replace("typing.", "")


def members(cls: type) -> dict[str, Any]:
    """What the class and its bases of this library define, bases first.

    An optimizer's first instance makes torch put a wrapped copy of `step` into its class; as the
    base has defined it, that changes neither the order nor what is printed.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("wlib"):
            found.update(vars(base))
    return found


def sections(value: Any, name: str) -> Iterator[str]:
    """The section of a function, or of a class with its own public methods."""
    yield f"### {name}\n"
    yield f"```python\n{name.rpartition('.')[2]}{signature(value)}\n```\n"
    yield f"```text\n{inspect.getdoc(value) or ''}\n```\n"
    if not inspect.isclass(value):
        return
    for method, member in members(value).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        text = (inspect.getdoc(function) or "").partition("\n")[0]
        arguments = "" if isinstance(member, property) else signature(function)
        yield f"- `{method}{arguments}`: {text}\n"


def page() -> str:
    """The whole page; a name that two modules export is described once."""
    seen: set[int] = set()
    parts = [HEADER]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}\n")
        parts.append(f"{(inspect.getdoc(module) or '').partition(chr(10))[0]}\n")
        for name in public_names(module):
            value = getattr(module, name)
            if id(value) not in seen and callable(value):
                seen.add(id(value))
                parts.extend(sections(value, f"{module_name}.{name}"))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
