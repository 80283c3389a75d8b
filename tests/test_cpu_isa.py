"""The CPU kernels give exact results with every instruction set, not only this processor's best."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wlib._load import text

SETS = ("baseline", "avx2", "avx512", "avx512vnni")  # each includes those before it


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wlib", *arguments]
    environment = {**os.environ, "WLIB_CPU_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", SETS[: SETS.index(text("wlib_cpu_isa")) + 1])
def test_selftest(isa: str) -> None:
    assert f"cpu ({isa})" in run(isa, "info").stdout
    done = run(isa, "selftest", "--seconds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
