"""The build: that tests see the library of these sources, and the build without CUDA."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wlib
from source_tree import PACKAGES, ROOT, cmake_tools, wrong_installation
from wlib.errors import typed_error

CPU_BUILD = ROOT / "build" / "cpu"


def test_a_stale_or_foreign_library_is_noticed() -> None:
    info, package = wlib.info(), PACKAGES[0]
    assert wrong_installation(info, package) is None
    stale = dataclasses.replace(info, build_id="0" * 12)
    assert "older than the sources" in str(wrong_installation(stale, package))
    foreign = dataclasses.replace(info, library="/usr/lib/_C.so")
    assert "not one of this tree's" in str(wrong_installation(foreign, package))
    assert "uninstall" in str(wrong_installation(info, Path("/usr/lib/wlib")))


def output(*command: str, library: Path | None = None) -> str:
    env = os.environ | ({"WLIB_LIBRARY": str(library)} if library else {})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cpu_library() -> Path:
    """The library as it is built where there is no nvcc; its build folder is kept."""
    cmake, ninja = cmake_tools()
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    source = ["-G", "Ninja", "-S", str(ROOT), "-B", str(CPU_BUILD)]
    output(cmake, *source, *options, "-DWLIB_CUDA=OFF")
    output(cmake, "--build", str(CPU_BUILD), "-j2")
    return CPU_BUILD / "_C.so"


@pytest.mark.slow
def test_build_without_cuda_says_so_and_works(cpu_library: Path) -> None:
    info = output(sys.executable, "-m", "wlib", "info", library=cpu_library)
    assert f"library       {cpu_library}" in info
    assert "CUDA kernels  none (WLIB_CUDA=OFF)" in info
    assert "sm_90a" not in info
    selftest = output(
        sys.executable, "-m", "wlib", "selftest", "--seconds", "1", library=cpu_library
    )
    assert "int4fp8_gemm exact" in selftest


@pytest.mark.slow
def test_build_without_cuda_has_no_kernel_for_a_gpu(cpu_library: Path) -> None:
    texts = re.findall(rb"[ -~]*built without CUDA[ -~]*", cpu_library.read_bytes())
    assert texts == [b"device cuda: this library was built without CUDA (rows: cpu)"]
    error = typed_error(ValueError(f"wlib::int4fp8_gemm: no kernel for {texts[0].decode()}"))
    assert type(error) is NotImplementedError
    assert b"sm_90a" not in cpu_library.read_bytes()
