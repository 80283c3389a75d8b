"""`pip wheel .` and what a user who installs it gets."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from source_tree import ROOT, source_hash
from wlib._load import text

pytestmark = pytest.mark.slow


def tracked(*folders: str) -> set[str]:
    """Files of the tree, as a path from its root."""
    done = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


class Install:
    """A new virtual environment that borrows torch and NumPy from this one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.folder = folder
        self.python = folder / "bin" / "python"
        site = sysconfig.get_path("purelib", vars={"base": str(folder)})
        # After the environment's own packages, and without the other's .pth files: the wlib of the
        # tree stays out.
        Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.site = Path(site)

    def run(self, *arguments: str) -> str:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WLIB_LIBRARY")}
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,  # not the tree
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pip_install(self, *arguments: str) -> None:
        # Run by this environment's Python: another one would start the build folder afresh.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command = [*pip, "--ignore-installed", "--prefix", str(self.folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    install = Install(tmp_path_factory.mktemp("wheel-install") / "venv")
    install.pip_install(str(wheel))
    return install


def test_wheel_serves_every_python_of_the_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")


def test_wheel_holds_the_package_and_one_library(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name.removeprefix("python/") for name in tracked("python/wlib")}
    assert {"wlib/py.typed", "wlib/bench/suites/llama3-8b.toml"} <= package
    assert names == package | {"wlib/_C.so"}


def test_wheel_requires_only_torch_and_numpy(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(path).decode())
    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert requirements == ["torch>=2.11", "numpy", 'tomli; python_version < "3.11"']
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_installed_wheel_passes_its_selftest(installed: Install) -> None:
    info = installed.run("-m", "wlib", "info")
    assert f"library       {installed.site / 'wlib' / '_C.so'}" in info
    assert f"build {source_hash()}" in info
    assert text("wlib_cuda_summary") in info
    assert "int4fp8_gemm exact" in installed.run("-m", "wlib", "selftest", "--seconds", "3")


def test_editable_install(tmp_path: Path, wheel: Path) -> None:  # the wheel: re-uses its objects
    install = Install(tmp_path / "venv")
    install.pip_install("--no-build-isolation", "--editable", str(ROOT))
    info = install.run("-m", "wlib", "info")
    assert f"library       {install.site / 'wlib' / '_C.so'}" in info
    assert f"build {source_hash()}" in info
    where = install.run("-c", "import wlib; print(wlib.__file__)")
    assert where.strip() == str(ROOT / "python" / "wlib" / "__init__.py")


def test_source_archive_holds_the_sources_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(tmp_path), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = tracked("csrc", "include", "cmake", "python", "tests", "tools", "docs", "third_party")
    needed |= {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    assert needed <= names
    assert not {name for name in names if name.endswith((".so", ".pyc")) or "site-packages" in name}
