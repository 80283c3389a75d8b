"""What the library asks of the process it is loaded into: the stable ABI of torch 2.11."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from wlib._load import library_path

STREAM = "aoti_torch_get_current_cuda_stream"
STABLE_HEADERS = ("accelerator", "library", "macros", "ops", "tensor")
# A static CUDA runtime takes 0.7 MB of it.
MAX_BYTES = 4_000_000


class Symbol(NamedTuple):
    name: str
    version: str  # of the shared library's symbol, empty if it has none
    kind: str  # as nm prints it


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(which: str) -> list[Symbol]:
    """Dynamic symbols of the library; `which` is nm's option."""
    lines = output("nm", "-D", which, str(library_path())).splitlines()
    found = []
    for line in lines:
        kind, full = line.split()[-2:]
        name, _, version = full.partition("@")
        found.append(Symbol(name, version, kind))
    return found


def dynamic(tag: str) -> list[str]:
    """Values of one tag of the dynamic section."""
    section = output("readelf", "--dynamic", "--wide", str(library_path()))
    return re.findall(rf"\({tag}\).*\[(.*)\]", section)


def declared_functions(target: str | None) -> set[str]:
    """C functions that torch's stable headers declare for a target version, e.g. 0x020b..."""
    include = Path(torch.__file__).parent / "include"
    source = "".join(f"#include <torch/csrc/stable/{name}.h>\n" for name in STABLE_HEADERS)
    flags = [f"-DTORCH_TARGET_VERSION={target}"] if target else []
    text = subprocess.run(
        ["g++", "-std=c++20", "-E", "-P", "-x", "c++", *flags, f"-I{include}", "-"],
        input=source,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


@pytest.fixture(scope="module")
def undefined() -> list[Symbol]:
    return symbols("--undefined-only")


def test_torch_is_used_through_the_stable_shims_of_2_11(undefined: list[Symbol]) -> None:
    allowed = declared_functions("0x020b000000000000")
    assert declared_functions(None) > allowed  # so a newer shim would be noticed
    shims = {s.name for s in undefined if not s.version and s.kind == "U"}
    assert "torch_library_impl" in shims
    assert shims <= allowed


def test_only_the_stream_is_weak(undefined: list[Symbol]) -> None:
    toolchain = {"__cxa_finalize", "__gmon_start__"}
    weak = {s.name for s in undefined if s.kind in "wv" and not s.name.startswith("_ITM_")}
    assert weak - toolchain == {STREAM}


def test_no_symbol_of_a_torch_class_of_python_or_of_cuda(undefined: list[Symbol]) -> None:
    foreign = re.compile(r"_ZNK?(2at|3c10|5torch)|_?Py[A-Z_]|cu[A-Z]|cuda[A-Z]|__cuda")
    assert not [s.name for s in undefined if foreign.match(s.name)]


def test_needed_libraries() -> None:
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    needed = set(dynamic("NEEDED"))
    assert needed <= system | {"libtorch.so", "libtorch_cpu.so"}
    assert "libtorch.so" in needed  # a CUDA build of torch brings the stream's shim with it


def test_no_search_path() -> None:
    assert dynamic("RPATH") + dynamic("RUNPATH") == []


def test_only_our_functions_are_exported() -> None:
    names = {s.name for s in symbols("--defined-only")}
    assert "wlib_build_id" in names
    assert not {name for name in names if not name.startswith("wlib_")}


def test_size() -> None:
    assert library_path().stat().st_size < MAX_BYTES


def test_no_path_of_the_building_machine() -> None:
    named = re.findall(rb"[\w./+-]+\.(?:h|cpp)\b", library_path().read_bytes())
    assert b"csrc/int4fp8/registration.cpp" in named  # error messages say where they come from
    assert not [path for path in named if path.startswith(b"/")]
