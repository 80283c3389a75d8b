"""Where and with what a figure was measured."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from .._load import text

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Environment:
    """What all rows of one run share; a device that is a CPU says so in its name."""

    device: str
    commit: str
    build_id: str
    torch: str
    cuda: str | None
    driver: str | None
    python: str
    date: str


def environment(device: torch.device) -> Environment:
    """Describe this run on `device`."""
    on_gpu = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else f"CPU ({_cpu_name()})",
        commit=commit(),
        build_id=text("wlib_build_id"),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        driver=_nvidia_smi(device, "driver_version") if on_gpu else None,
        python=platform.python_version(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def wlib_version() -> str:
    """Return the version and the build id of the library that is loaded."""
    return f"{text('wlib_version')}+{text('wlib_build_id')}"


def commit() -> str:
    """Return the commit of the package: written beside a packaged copy, or of its checkout."""
    package = Path(__file__).parents[1]
    note = package / "COMMIT"
    if note.is_file():
        return note.read_text().strip()
    try:
        return _output("git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def clocks(device: torch.device) -> tuple[float | None, float | None]:
    """Return the SM clock (MHz) and the power draw (W) at this moment, None where unreadable."""
    if device.type != "cuda":
        return None, None
    answer = _nvidia_smi(device, "clocks.sm,power.draw")
    try:
        sm_clock, power = (float(value) for value in (answer or "").split(","))
    except ValueError:
        return None, None
    return sm_clock, power


def _nvidia_smi(device: torch.device, query: str) -> str | None:
    uuid = torch.cuda.get_device_properties(device).uuid
    options = [f"--id=GPU-{uuid}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        return _output("nvidia-smi", *options)
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _output(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()
