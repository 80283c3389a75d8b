"""What every test run starts with: the right library, and the wheel for the tests that need one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wlib
from sim.planting import Results
from source_tree import ROOT, wrong_installation


def missing_gpu() -> str | None:
    """Why the Hopper kernels cannot run here, or None."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability()[0] != 9:
        return f"{torch.cuda.get_device_name()} is not an sm_90 GPU"
    if "sm_90a" not in wlib.info().cuda_kernels:
        return "wlib was built without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU; with WLIB_REQUIRE_GPU=1 a missing one is an error instead."""
    reason = missing_gpu()
    if reason and os.environ.get("WLIB_REQUIRE_GPU") == "1":
        raise pytest.UsageError(f"WLIB_REQUIRE_GPU=1, but {reason}")
    for item in items:
        if ROOT / "tests" / "gpu" in item.path.parents:
            item.add_marker(pytest.mark.gpu)
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an sm_90 GPU: {reason}"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mutant" in metafunc.fixturenames:
        mutants = metafunc.cls.mutants
        metafunc.parametrize("mutant", mutants, ids=[mutant.name for mutant in mutants])


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="class")
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the planted bugs of a class derived from PlantedBugs fire."""
    return request.cls.run(tmp_path_factory.mktemp("planted"))


def pytest_sessionstart() -> None:
    reason = wrong_installation(wlib.info(), Path(wlib.__file__).parent)
    if reason:
        raise pytest.UsageError(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    info = wlib.info()
    terminalreporter.write_line(f"wlib {info.version}, build {info.build_id}: {info.library}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip wheel .` makes of this tree, the only file in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return path
