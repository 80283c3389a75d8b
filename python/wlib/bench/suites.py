"""Suites: named sizes of real models for each op, one TOML file per model.

A table per op has the sizes of its shapes; a size that is a list is an axis, and one beside
`shapes` goes for all of them::

    [int4fp8]
    group_size = 128
    m = [1, 16, 64]
    [int4fp8.shapes]
    qkv = { n = 6144, k = 4096 }
"""

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .op import Op

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITE_DIR = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Problem:
    """An op at one point: `shape` is `suite.name`, `at` tells the values of the axes."""

    op: str
    shape: str
    at: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class Suite:
    """The tables of one file."""

    name: str
    tables: dict[str, dict[str, Any]]

    def has_axis(self, op: str, name: str) -> bool:
        """Return whether the table of `op` has an axis of this name."""
        return isinstance(self.tables[op].get(name), list)

    def problems(self, op: Op[Any], m: tuple[int, ...] | None = None) -> Iterator[Problem]:
        """Yield the problems of `op`, with other values for the axis `m` if given.

        Raises:
            ValueError: the suite has no table for the op, or a size is missing or unknown.
        """
        if op.name not in self.tables:
            raise ValueError(f"suite {self.name!r} has no table [{op.name}]")
        table = self.tables[op.name]
        common = {name: value for name, value in table.items() if name != "shapes"}
        if m and not self.has_axis(op.name, "m"):
            raise ValueError(f"[{op.name}] of suite {self.name!r} has no axis 'm'")
        common |= {"m": list(m)} if m else {}
        for name, own in table.get("shapes", {}).items():
            sizes = common | own
            if sizes.keys() != set(op.sizes):
                wrong = sorted(sizes.keys() ^ set(op.sizes))
                raise ValueError(f"{self.name}.{name}: [{op.name}] needs {op.sizes}, see {wrong}")
            yield from _points(op.name, f"{self.name}.{name}", sizes)


def _points(op: str, shape: str, sizes: Mapping[str, int | list[int]]) -> Iterator[Problem]:
    axes = {name: values for name, values in sizes.items() if isinstance(values, list)}
    fixed = {name: value for name, value in sizes.items() if isinstance(value, int)}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        at = " ".join(f"{name}={value}" for name, value in point.items())
        yield Problem(op, shape, at, {**fixed, **point})


def suite_names() -> list[str]:
    """Return the names of the suites that come with wlib."""
    return sorted(path.stem for path in SUITE_DIR.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Load a suite by its name, or by the path of a `.toml` file.

    Raises:
        ValueError: there is no such suite, or the file is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else SUITE_DIR / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"no suite {name!r}: expected one of {suite_names()} or a .toml file")
    try:
        return Suite(path.stem, tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
