"""The compile commands of the development build."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build" / "dev"


def compile_command(source: str) -> list[str]:
    """How the build compiles the file of this name, without the names of source and output."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    entry = next(e for e in entries if Path(e["file"]).name == source)
    words = shlex.split(entry["command"])
    words = words[: words.index("-o")] + words[words.index("-o") + 2 :]
    return [word for word in words if word != entry["file"]]
