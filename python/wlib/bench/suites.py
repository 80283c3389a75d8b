"""Suites: the named [N, K] weight shapes of real models, one TOML file each."""

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITE_DIR = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Shape:
    """One weight: `name` is `suite.layer`, the matrix is [n, k]."""

    name: str
    n: int
    k: int


@dataclass(frozen=True)
class Suite:
    """Shapes measured together, with the sizes of M and the group size to use by default."""

    name: str
    group_size: int
    m: tuple[int, ...]
    shapes: tuple[Shape, ...]


def suite_names() -> list[str]:
    """Return the names of the suites that come with wlib."""
    return sorted(path.stem for path in SUITE_DIR.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Load a suite by its name, or by the path of a `.toml` file.

    Raises:
        ValueError: there is no such suite, or the file lacks a field.
    """
    path = Path(name) if name.endswith(".toml") else SUITE_DIR / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"no suite {name!r}: expected one of {suite_names()} or a .toml file")
    data = tomllib.loads(path.read_text())
    try:
        shapes = tuple(
            Shape(f"{path.stem}.{layer}", int(size["n"]), int(size["k"]))
            for layer, size in data["shapes"].items()
        )
        return Suite(path.stem, int(data["group_size"]), tuple(data["m"]), shapes)
    except KeyError as error:
        raise ValueError(f"{path}: field {error} is missing") from error
