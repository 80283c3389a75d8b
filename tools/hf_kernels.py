"""Lays out a repository as the `kernels` package of Hugging Face loads it, from the built library.

    python tools/hf_kernels.py build/hf_kernels

    build/hf_kernels/build/torch-stable-abi211-cpu-x86_64-linux/    for torch without CUDA
    build/hf_kernels/build/torch-stable-abi211-cu130-x86_64-linux/  for torch with CUDA 13

Each holds the package with the library inside, `metadata.json` and `wlib/__init__.py`, the place
where older versions of `kernels` look. docs/integrations.md says how to load it, and what keeps it
from being published.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
from pathlib import Path

import wlib

# cmake/TorchHeaders.cmake: the oldest torch whose stable ABI the library asks for.
STABLE_ABI = "211"
# By the convention of `kernels`, an interface that may still change.
VERSION = 0
# Command line and benchmark: they import more than torch, which a kernel must not.
LEFT_OUT = ("__pycache__", "__main__.py", "bench")
FORWARD = '''\
"""The package one folder above, for loaders that look here."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("wlib", Path(__file__).parents[1] / "__init__.py")
_module = sys.modules["wlib"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
globals().update(vars(_module))
'''


def backends(cuda_kernels: str) -> dict[str, dict[str, object]]:
    """The `backend` of each variant by its name, from what `wlib.info().cuda_kernels` says."""
    found: dict[str, dict[str, object]] = {"cpu": {"type": "cpu"}}
    compiler = re.search(r"nvcc (\d+)\.(\d+)", cuda_kernels)
    archs = re.findall(r"sm_(\d+)(\d[af]?)", cuda_kernels)
    if compiler and archs:
        capabilities = [f"{major}.{minor}" for major, minor in archs]
        found["cu" + "".join(compiler.groups())] = {"type": "cuda", "archs": capabilities}
    return found


def lay_out(out: Path) -> list[Path]:
    """Write the repository into a new folder; the folders of its variants.

    Raises:
        FileExistsError: there is something at `out`.
    """
    info = wlib.info()
    out.mkdir(parents=True)
    folders = []
    for name, backend in backends(info.cuda_kernels).items():
        system = f"{platform.machine()}-{platform.system().lower()}"
        folder = out / "build" / f"torch-stable-abi{STABLE_ABI}-{name}-{system}"
        package = Path(wlib.__file__).parent
        shutil.copytree(package, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.copy(info.library, folder / "_C.so")
        (folder / "wlib").mkdir()
        (folder / "wlib" / "__init__.py").write_text(FORWARD)
        metadata = {
            # Ops must be registered as torch.ops.<id>.
            "id": "wlib",
            "name": "wlib",
            "version": VERSION,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": backend,
            "digest": {"algorithm": "sha256", "files": digests(folder)},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        folders.append(folder)
    return folders


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, in base64, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in files
    }


def main() -> None:
    """Write and say where."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    for folder in lay_out(parser.parse_args().out):
        print(folder)


if __name__ == "__main__":
    main()
