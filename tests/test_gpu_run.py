"""`make gpu` without a GPU: its steps, its budgets, and a dry run."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sanitizer_cases

import gpu_run
from gpu_run import Step, run_step, run_steps
from wlib.bench.ops import OPS

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


def python(code: str) -> list[str]:
    return [PYTHON, "-c", code]


def test_a_run_ends_within_eight_minutes(tmp_path: Path) -> None:
    steps = gpu_run.planned_steps(tmp_path, cpu=False)
    assert sum(step.budget_s for step in steps) < 8 * 60
    assert [step.name for step in steps] == [
        step.name for step in gpu_run.planned_steps(tmp_path, cpu=True)
    ]


def test_the_steps_run_every_test_and_the_long_ones_last(tmp_path: Path) -> None:
    steps = {step.name: step.commands[""] for step in gpu_run.planned_steps(tmp_path, cpu=False)
             if "" in step.commands}  # fmt: skip
    run = [Path(word).name for word in steps["first"] + steps["tests"] if word.endswith(".py")]
    assert sorted(run) == sorted(file.name for file in (ROOT / "tests/gpu").glob("test_*.py"))
    assert run[0] == "test_first.py"
    assert run[-4:] == list(gpu_run.LAST)
    assert [*steps][-1] == "bench"


def test_output_is_passed_on_with_the_name_of_its_command(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = io.StringIO()
    step = Step("two", 20, {"a": python("print('one')"), "b": python("print('two')")})
    assert run_step(step, 20, log).status == "passed"
    assert sorted(log.getvalue().splitlines()) == ["a: one", "b: two"]
    assert capfd.readouterr().out == log.getvalue()


def test_a_failing_command_is_named_and_the_next_step_runs() -> None:
    steps = [
        Step("bad", 20, {"x": python("raise SystemExit(3)"), "y": python("")}),
        Step("good", 20, {"": python("")}),
        Step("elsewhere", 20, {"x": ["no-such-tool"], "y": ["no-such-tool", "again"]}),
        Step("in part", 20, {"x": ["no-such-tool"], "y": python("raise SystemExit(1)")}),
    ]
    results = run_steps(steps, io.StringIO(), list)
    assert [result.status for result in results] == [
        "x: exit code 3",
        "passed",
        "not run (no no-such-tool)",
        "y: exit code 1 (no no-such-tool)",
    ]
    assert [result.failed for result in results] == [True, False, False, True]


def test_a_step_out_of_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "note"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(note)!r}).touch()"
    parent = f"import subprocess; print('begun'); subprocess.run([{PYTHON!r}, '-c', {child!r}])"
    log = io.StringIO()
    start = time.monotonic()
    result = run_step(Step("slow", 1, {"": python(parent)}), 1, log)
    assert result.status == "out of time"
    assert result.failed
    assert time.monotonic() - start < 1.9
    time.sleep(2)
    assert not note.exists()


def test_a_step_gets_the_time_the_earlier_ones_left() -> None:
    log = io.StringIO()
    steps = [Step("quick", 50, {"": python("")}), Step("next", 7, {"": python("")})]
    run_steps(steps, log, list)
    limits = [int(line.split()[-3]) for line in log.getvalue().splitlines() if "at most" in line]
    assert limits[0] == 50
    assert 40 < limits[1] <= 57


def test_a_command_learns_how_long_it_has(capfd: pytest.CaptureFixture[str]) -> None:
    words = [PYTHON, "-c", "import sys; print(sys.argv[1])", "--seconds={seconds}"]
    assert run_step(Step("told", 99, {"": words}), 20.0, io.StringIO()).status == "passed"
    assert capfd.readouterr().out == "--seconds=17\n"


def test_the_summary_is_written_after_every_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = "import pathlib, sys; sys.exit('| first |' not in pathlib.Path(sys.argv[1]).read_text())"
    steps = [
        Step("first", 20, {"": python("")}),
        Step("second", 20, {"": [*python(seen), str(tmp_path / "summary.md")]}),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu_run, "planned_steps", lambda out, cpu: steps)
    assert gpu_run.main(["--cpu", f"--out={tmp_path}"]) == 0


def test_exit_code_and_summary_of_a_run_with_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [
        Step("bad", 20, {"": python("raise SystemExit(3)")}),
        Step("good", 20, {"": python("")}),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main sets it, and it must not stay
    monkeypatch.setattr(gpu_run, "planned_steps", lambda out, cpu: steps)
    assert gpu_run.main(["--cpu", f"--out={tmp_path}"]) == 1
    text = (tmp_path / "summary.md").read_text()
    assert "| bad | exit code 3 |" in text
    assert "| good | passed |" in text
    assert gpu_run.main(["--cpu", f"--out={tmp_path}", "--steps=good"]) == 0


def test_without_a_library_built_beforehand_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_run, "PACKAGE", tmp_path)
    monkeypatch.delenv("WLIB_LIBRARY", raising=False)
    with pytest.raises(SystemExit, match="run `make gpu-package`"):
        gpu_run.main([])


def test_a_missing_gpu_fails_the_tests_of_a_run() -> None:
    """What is skipped in `make test` must not pass for checked in `make gpu`."""
    command = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu/test_first.py"]
    environment = os.environ | {"WLIB_REQUIRE_GPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "WLIB_REQUIRE_GPU=1, but torch sees no CUDA device" in result.stdout + result.stderr


def test_dry_run(tmp_path: Path) -> None:
    command = [PYTHON, "tools/gpu_run.py", "--cpu", f"--out={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    text = (tmp_path / "summary.md").read_text()
    for step in gpu_run.planned_steps(tmp_path, cpu=True):
        assert f"| {step.name} | passed |" in text
    assert "# Benchmark on CPU" in text
    log = (tmp_path / "run.log").read_text()
    assert "needs an sm_90 GPU" in log
    titles = [title for title, _ in sanitizer_cases.checks()]
    families = {"int4fp8", "sparse", "linear", "fp4", "attention", "cache", "atoms"}
    assert {title.split()[0] for title in titles} == families
    assert [f"{title}: right" in log for title in titles] == [True] * len(titles)
    rows = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} >= {"wlib", "torch_bf16", "copy"}
    assert {row["op"] for row in rows} == set(OPS)
