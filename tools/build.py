"""Builds the library and the test module into a folder: `python tools/build.py build/dev --jobs 2`.

The output of a build that succeeds stays in build.log; of one that fails it is printed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"^\[(\d+)/(\d+)\]")


def stream(command: list[str], log: Path, title: str) -> None:
    """Run a command with a one-line progress display; exits if it fails."""
    start = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            step = STEP.match(line)
            if step and sys.stdout.isatty():
                print(f"\r  {title}: {step[1]} of {step[2]} ", end="", flush=True)
    log.write_text("".join(lines))
    if process.returncode:
        print(f"\n  {title} failed:\n\n$ {' '.join(command)}\n{''.join(lines)}")
        sys.exit(1)
    seconds = time.monotonic() - start
    if seconds > 2 or sys.stdout.isatty():
        print(f"\r  {title}: done in {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    folder = ROOT / args.folder
    folder.mkdir(parents=True, exist_ok=True)
    tools = Path(sys.executable).parent
    if not (folder / "build.ninja").exists():
        configure = [str(tools / "cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(folder)]
        options = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
            "-DWLIB_PROBE=ON",
        ]
        stream([*configure, *options], folder / "configure.log", "configure")
    stream(
        [str(tools / "cmake"), "--build", str(folder), "-j", str(args.jobs)],
        folder / "build.log",
        "build",
    )


if __name__ == "__main__":
    main()
