"""The tree under test: its sources, and how the development build compiles them."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

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


def compile_command(source: str) -> list[str]:
    """How the build compiles the file of this name, without the names of source and output."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    entry = next(e for e in entries if Path(e["file"]).name == source)
    words = shlex.split(entry["command"])
    words = words[: words.index("-o")] + words[words.index("-o") + 2 :]
    return [word for word in words if word != entry["file"]]
