"""Every header compiles alone, without a warning."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from source_tree import ROOT, compile_command

HEADERS = sorted(
    path.relative_to(ROOT / folder).as_posix()
    for folder in ("include", "csrc")
    for path in (ROOT / folder).rglob("*.h")
)


def search_flags(source: str) -> list[str]:
    """-I, -isystem and -D flags with which the build compiles the file of this name."""
    words = compile_command(source)
    joined = [f"-isystem{path}" for flag, path in pairwise(words) if flag == "-isystem"]
    return joined + [word for word in words if word.startswith(("-I", "-D"))]


def compile_header(header: str) -> str:
    """The compiler's messages about a file that includes nothing but this header."""
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]
    search = dict.fromkeys(search_flags("bind.cpp") + search_flags("library.cpp"))
    return subprocess.run(
        ["g++", *flags, *search, "-"],
        input=f'#include "{header}"\n',
        capture_output=True,
        text=True,
    ).stderr


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(HEADERS, pool.map(compile_header, HEADERS), strict=True))


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header: str, messages: dict[str, str]) -> None:
    assert messages[header] == ""


def test_the_check_can_fail(tmp_path: Path) -> None:
    header = tmp_path / "needs_another.h"
    header.write_text("inline std::string unknown(int unused) { return {}; }\n")
    assert "std" in compile_header(str(header))
