"""Does in one go what a machine with an sm_90 GPU is for: `make gpu`.

Checks a library that was built beforehand (the package in build/gpu, see `make gpu-package`, or the
file $WLIB_LIBRARY), measures it, and leaves one directory of results. A step that fails or runs out
of time does not stop the next ones, and makes the exit code 1. Needs no internet and nothing but
torch, NumPy and pytest.

Usage: python tools/gpu_run.py [--cpu] [--steps NAME,...] [--out DIR]
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "gpu"
PYTHON = sys.executable
GPU_SUITES = "large,llama3-8b,mixtral-8x7b"
LAST = ("test_large.py", "test_programs.py", "test_runtime.py", "test_timing.py")  # long ones


@dataclass(frozen=True)
class Step:
    """Commands that run side by side, with the seconds they may take."""

    name: str
    budget_s: float
    commands: Mapping[str, Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a step ended; a program that is not installed is noted, but fails nothing."""

    step: Step
    status: str
    failed: bool
    seconds: float


def planned_steps(out: Path, cpu: bool) -> list[Step]:
    """The steps of a run on the GPU, or of its dry run on the CPU."""
    gpu = {"gpu": ["nvidia-smi"]}
    pytest = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-vv", "-ra"]
    tests = ROOT / "tests" / "gpu"
    first = str(tests / "test_first.py")
    files = sorted(tests.glob("test_*.py"), key=lambda file: (file.name in LAST, file.name))
    others = [str(file) for file in files if str(file) != first]
    seconds = 2 if cpu else 15  # per device
    expandable = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    cases = [PYTHON, str(tests / "sanitizer_cases.py"), "cpu" if cpu else "cuda"]
    checks = {
        tool: [
            "compute-sanitizer",
            f"--tool={tool}",
            "--target-processes=all",
            "--error-exitcode=9",
            *cases,
        ]
        for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
    }
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own
    bench = [PYTHON, "-m", "wlib", "bench", "all", f"--json={out / 'bench.jsonl'}"]
    bench += [f"--summary={out / 'bench.md'}"]
    bench += [f"--plot={out / 'bench.png'}"] if find_spec("matplotlib") else []
    bench += ["--cpu", "--quick", "--shapes=tiny"] if cpu else [f"--shapes={GPU_SUITES}"]
    bench += [] if cpu else ["--seconds={seconds}"]
    programs = [str(tests / name) for name in ("test_runtime.py", "test_programs.py")]
    return [
        Step("environment", 20, {"wlib": [PYTHON, "-m", "wlib", "info"]} | ({} if cpu else gpu)),
        Step("first", 40, {"": [*pytest, first]}),
        # Every family once, the kernels that no GPU has run yet included, before anything long.
        Step("families", 30, {"": cases}),
        Step("selftest", 40, {"": [PYTHON, "-m", "wlib", "selftest", f"--seconds={seconds}"]}),
        Step("tests", 105, {"": [*pytest, *others]}),
        Step("expandable", 40, {"": [*pytest, first, *programs, "-k", "not threads"]}, expandable),
        # On a CPU there is nothing to add to what the families' step has run.
        Step("sanitizer", 75, {"": [PYTHON, "-c", ""]} if cpu else checks, uncached),
        Step("bench", 120, {"": bench}),
    ]


def run_steps(
    steps: Sequence[Step], log: IO[str], after_each: Callable[[Sequence[Result]], object]
) -> list[Result]:
    """Run the steps one after the other; each may also use the time that those before it left."""
    start = time.monotonic()
    results: list[Result] = []
    for number, step in enumerate(steps, start=1):
        limit_s = start + sum(s.budget_s for s in steps[:number]) - time.monotonic()
        _say(f"=== [{number}/{len(steps)}] {step.name}, at most {limit_s:.0f} s ===\n", log)
        results.append(run_step(step, limit_s, log))
        _say(f"=== {step.name}: {results[-1].status}, {results[-1].seconds:.1f} s ===\n", log)
        after_each(results)
    return results


def run_step(step: Step, limit_s: float, log: IO[str]) -> Result:
    """Run one step, its output going to the terminal and to `log` as it comes.

    "{seconds}" in a command becomes the time within which it should end by itself.
    """
    start = time.monotonic()
    found = {label: args for label, args in step.commands.items() if shutil.which(args[0])}
    seconds = str(max(1, int(0.85 * limit_s)))  # the rest is for what it does at its end
    processes = {
        label: _start([word.replace("{seconds}", seconds) for word in args], step)
        for label, args in found.items()
    }
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_pass_on, args=(process.stdout, label, log, lock))
        for label, process in processes.items()
    ]
    for reader in readers:
        reader.start()
    ends = [_wait(process, start + limit_s, label) for label, process in processes.items()]
    for reader in readers:
        reader.join()
    wrong = ", ".join(end for end in ends if end)
    status = wrong or ("passed" if found else "not run")
    if missing := {args[0] for label, args in step.commands.items() if label not in found}:
        status += f" (no {', '.join(sorted(missing))})"
    return Result(step, status, bool(wrong), time.monotonic() - start)


def _start(command: Sequence[str], step: Step) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its children can be stopped with it
    )


def _wait(process: subprocess.Popen[str], deadline: float, label: str) -> str:
    """Wait for a process; return what went wrong, or nothing."""
    name = f"{label}: " if label else ""
    try:
        code = process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{name}out of time"
    return f"{name}exit code {code}" if code else ""


def _pass_on(stream: IO[str], label: str, log: IO[str], lock: threading.Lock) -> None:
    for line in stream:
        with lock:
            _say(f"{label}: {line}" if label else line, log)


def _say(text: str, log: IO[str]) -> None:
    for target in (sys.stdout, log):
        target.write(text)
        target.flush()


def summary(results: Sequence[Result], title: str, bench: str) -> str:
    """The run as Markdown, followed by the summary of the benchmark."""
    lines = [f"# {title}", "", "| step | result | seconds | budget |", "| --- | --- | --- | --- |"]
    for result in results:
        step = result.step
        lines.append(
            f"| {step.name} | {result.status} | {result.seconds:.1f} | {step.budget_s:g} |"
        )
    return "\n".join([*lines, "", bench])


def use_library_built_beforehand() -> None:
    """Let the steps import the packaged wlib, or this tree's with $WLIB_LIBRARY."""
    if not (PACKAGE / "wlib").is_dir() and "WLIB_LIBRARY" not in os.environ:
        sys.exit(f"{PACKAGE}/wlib is missing: run `make gpu-package` where there is a compiler")
    package = PACKAGE if (PACKAGE / "wlib").is_dir() else ROOT / "python"
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["WLIB_REQUIRE_GPU"] = "1"  # no test passes by being skipped
    os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"  # where compute-sanitizer often is


def title(cpu: bool) -> str:
    """<device>-<date>-<commit>, as far as they can be found out."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    device = "CPU dry run" if cpu else _first_line(query)
    ask = "from wlib.bench.environment import commit; print(commit())"
    words = (device, f"{datetime.now(timezone.utc):%Y%m%d-%H%M}", _first_line([PYTHON, "-c", ask]))
    return "-".join(re.sub(r"[^\w.]+", "-", word) for word in words)


def _first_line(command: Sequence[str]) -> str:
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(answer.stdout.splitlines()), "unknown")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the run; returns 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--steps", metavar="NAME,...", help="only these steps")
    parser.add_argument(
        "--out", type=Path, help="default $OUT, or bench/results/<gpu>-<date>-<commit>"
    )
    args = parser.parse_args(arguments)
    if args.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        use_library_built_beforehand()
    name = title(args.cpu)
    out = args.out or Path(os.environ.get("OUT") or ROOT / "bench" / "results" / name)
    out.mkdir(parents=True, exist_ok=True)
    steps = planned_steps(out.resolve(), args.cpu)
    if args.steps:
        steps = [step for step in steps if step.name in args.steps.split(",")]

    def write_summary(results: Sequence[Result]) -> str:
        bench = out / "bench.md"
        text = summary(results, name, bench.read_text() if bench.is_file() else "")
        (out / "summary.md").write_text(text)
        return text

    with (out / "run.log").open("w") as log:  # what a run has found survives its being stopped
        results = run_steps(steps, log, write_summary)
    print(f"{write_summary(results)}\n{out}")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
