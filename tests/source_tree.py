"""The tree under test: its sources, and how the development build compiles them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from pathlib import Path

from wlib.info import Info

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "dev"


def source_hash() -> str:
    """The build id of the sources as they are now; the same recipe as in cmake/BuildId.cmake."""
    folders = {"csrc": ("*.cpp", "*.cu", "*.h"), "include": ("*.h",)}
    sources = sorted(
        path.relative_to(ROOT).as_posix()
        for folder, patterns in folders.items()
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
        if ROOT / "csrc" / "probe" not in path.parents
    )
    lines = (f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}" for name in sources)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:12]


# The package in the tree, and the copy that `make gpu-package` lays out.
PACKAGES = (ROOT / "python" / "wlib", ROOT / "build" / "gpu" / "wlib")


def wrong_installation(info: Info, package: Path) -> str | None:
    """Why a test of this installation would not be a test of this tree, or None."""
    if package not in PACKAGES:
        return f"wlib comes from {package}, not from this tree: uninstall that copy"
    libraries = [path / "_C.so" for path in PACKAGES] + [ROOT / "build" / "dev" / "_C.so"]
    library = Path(info.library)
    if library not in libraries and info.library != os.environ.get("WLIB_LIBRARY"):
        return f"the library is {library}, not one of this tree's"
    if info.build_id != source_hash():
        return f"{library} (build {info.build_id}) is older than the sources: run `make build`"
    return None


def compile_command(source: str) -> list[str]:
    """How the build compiles the file of this name, without the names of source and output."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    entry = next(e for e in entries if Path(e["file"]).name == source)
    words = shlex.split(entry["command"])
    words = words[: words.index("-o")] + words[words.index("-o") + 2 :]
    return [word for word in words if word != entry["file"]]


def cmake_tools() -> tuple[str, str]:
    """The CMake and the Ninja of the development build."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    cmake = re.search(r"^CMAKE_COMMAND:INTERNAL=(.*)$", cache, re.MULTILINE)
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*)$", cache, re.MULTILINE)
    assert cmake
    assert ninja
    return cmake[1], ninja[1]
