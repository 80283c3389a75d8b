"""The benchmark harness, end to end on the CPU and piece by piece."""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wlib.bench import accuracy, cli, compare, suites, summary, timing
from wlib.bench.arms import TorchBf16
from wlib.bench.rows import COPY, OURS, Row, append_rows, read_rows
from wlib.bench.runner import COPY_BYTES, Point
from wlib.bench.table import COLUMNS, point_cells

BASELINES = {"torch_bf16", "torch_fp8_rowwise", "torch_fp8_tensorwise", "torch_fp32"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny problems on many threads measure how busy the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(*arguments: object) -> int:
    """Run `python -m wlib bench int4fp8 --cpu --quick` with more `arguments`."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = ["int4fp8", "--cpu", "--quick", "--shapes", "tiny", *map(str, arguments)]
    return cli.run(parser.parse_args(words))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything one run of the tool writes."""
    path = tmp_path_factory.mktemp("bench")
    files = [
        f"--{kind}={path / name}"
        for kind, name in [("json", "rows.jsonl"), ("summary", "summary.md"), ("plot", "plot.png")]
    ]
    assert bench(*files) == 0
    return path


@pytest.fixture
def rows(run_dir: Path) -> list[Row]:
    return read_rows(run_dir / "rows.jsonl")


def scaled(rows: list[Row], factor: float) -> list[Row]:
    """The same run, every time multiplied by `factor`."""
    return [
        replace(
            row, **{name: getattr(row, name) * factor for name in ("median_us", "p10_us", "p90_us")}
        )
        for row in rows
    ]


def test_every_point_has_every_arm(rows: list[Row]) -> None:
    assert {row.shape for row in rows} == {"tiny.square", "tiny.wide"}
    for point in {row.point for row in rows}:
        arms = [row.arm for row in rows if row.point == point]
        assert sorted(arms) == sorted({COPY, OURS, "wlib+quantize"} | BASELINES)
    assert {row.m for row in rows} == {1, 5}


def test_lines_are_flat_json_with_the_fields_of_a_row(run_dir: Path) -> None:
    for line in (run_dir / "rows.jsonl").read_text().splitlines():
        data = json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
        assert set(data) == {field.name for field in fields(Row)}


def test_figures_follow_from_times_and_sizes(rows: list[Row]) -> None:
    for row in rows:
        copy = next(r for r in rows if r.point == row.point and r.arm == COPY)
        assert 0 < row.p10_us <= row.median_us <= row.p90_us
        assert row.gb_per_s == pytest.approx(row.bytes / row.median_us / 1e3)
        assert row.copy_fraction == pytest.approx(row.gb_per_s / copy.gb_per_s)
        assert row.flops == (0 if row.arm == COPY else 2 * row.m * row.n * row.k)
        assert row.tflops == pytest.approx(row.flops / row.median_us / 1e6)
        for other in (r for r in rows if r.point == row.point and r.arm not in (COPY, row.arm)):
            assert row.speedup[other.arm] == pytest.approx(other.median_us / row.median_us)
        assert row.environment.device.startswith("CPU")
        assert row.sm_clock_mhz is None
        assert row.environment.cuda == torch.version.cuda


def test_bytes_are_those_of_the_stored_operands(rows: list[Row]) -> None:
    copied = {r.bytes for r in rows if r.arm == COPY}
    assert copied == {2 * COPY_BYTES["cpu"]}  # read and written
    row = next(r for r in rows if r.arm == "torch_bf16" and r.shape == "tiny.wide" and r.m == 5)
    assert row.bytes == 2 * (192 * 64 + 5 * 64 + 5 * 192)
    ours = next(r for r in rows if r.arm == OURS and r.shape == "tiny.square" and r.m == 5)
    weight = 128 * 128 // 2 + 2 * 128 * 4 + 4 * 128  # codes, BF16 group scales, FP32 channel scales
    assert ours.bytes == weight + 5 * 128 + 4 * 5 + 2 * 5 * 128


def test_errors_tell_arithmetic_from_format(rows: list[Row]) -> None:
    floors = {"torch_fp32": 120.0} | dict.fromkeys(BASELINES - {"torch_fp32"}, 45.0) | {OURS: 45.0}
    for row in rows:
        if row.arm in floors:  # BF16 output rounding alone makes about 55 dB
            assert row.sqnr_db > floors[row.arm], row.arm
            assert row.max_rel_error < 0.01
        if row.arm == OURS:  # INT4 weights cost far more than the arithmetic does
            assert 12 < row.format_sqnr_db < 30


def test_accuracy_against_numpy() -> None:
    generator = np.random.default_rng(1)
    reference = generator.normal(size=(7, 5))
    y = reference + generator.normal(size=(7, 5)) * 1e-3
    result = accuracy.compare(*map(torch.from_numpy, (y, reference, 2 * reference)))
    noise = np.mean((y - reference) ** 2)
    assert result.sqnr_db == pytest.approx(10 * np.log10(np.mean(reference**2) / noise))
    assert result.max_rel_error == pytest.approx(
        np.abs(y - reference).max() / np.abs(reference).max()
    )
    assert result.format_sqnr_db == pytest.approx(10 * math.log10(4), abs=0.05)
    exact = torch.ones(2, 2, dtype=torch.float64)
    assert accuracy.compare(exact, exact, exact) == accuracy.Accuracy(None, 0.0, None)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_summarize_against_numpy(count: int) -> None:
    generator = random.Random(count)
    samples = [generator.lognormvariate(3, 1) for _ in range(count)]
    expected = np.percentile(samples, [50, 10, 90])
    result = timing.summarize(samples)
    assert (result.median_us, result.p10_us, result.p90_us) == pytest.approx(tuple(expected))
    assert result.rounds == count


def test_measure_counts_every_call_and_takes_turns() -> None:
    order = []
    calls = {
        name: [lambda name=name, i=i: order.append((name, i)) for i in range(3)] for name in "ab"
    }
    result = timing.measure(calls, torch.device("cpu"), budget_s=0.01)
    assert set(result) == {"a", "b"}
    assert [i for name, i in order if name == "a"] == [0, 1, 2] * (order.count(("a", 0)))
    turns = [name for name, i in order if i == 0]
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes >= timing.MIN_ROUNDS  # interleaved, not one arm after the other


def test_measure_tells_a_slow_arm_from_a_fast_one() -> None:
    calls = {"fast": [lambda: time.sleep(1e-3)] * 10, "slow": [lambda: time.sleep(1e-2)]}
    result = timing.measure(calls, torch.device("cpu"), budget_s=0.01)
    assert 1e3 <= result["fast"].median_us < 8e3 < 1e4 <= result["slow"].median_us < 1e5


def test_a_run_is_not_slower_than_itself(rows: list[Row]) -> None:
    found = compare.changes(rows, rows)
    assert len(found) == sum(row.arm != COPY for row in rows)
    assert all(change.verdict == "same" and change.ratio == 1 for change in found)


def test_verdict_needs_disjoint_intervals_and_a_margin(rows: list[Row]) -> None:
    old = replace(rows[0], arm=OURS, median_us=100.0, p10_us=98.0, p90_us=102.0)
    cases = {
        (120.0, 110.0, 130.0): "slower",
        (120.0, 101.0, 130.0): "same",  # the intervals overlap
        (104.0, 103.0, 105.0): "same",  # disjoint, but within the margin
        (80.0, 75.0, 90.0): "faster",
        (80.0, 75.0, 99.0): "same",
    }
    for (median, p10, p90), verdict in cases.items():
        new = replace(old, median_us=median, p10_us=p10, p90_us=p90)
        assert compare.changes([old], [new])[0].verdict == verdict


def test_other_devices_arms_and_shapes_are_not_compared(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    elsewhere = replace(row, environment=replace(row.environment, device="NVIDIA H200"))
    others = [elsewhere, replace(row, arm="else"), replace(row, n=row.n + 64), replace(row, m=77)]
    assert compare.changes(others, [row]) == []


@pytest.mark.parametrize(("factor", "code"), [(1e-6, cli.EXIT_SLOWER), (1e6, 0)])
def test_compare_exit_code(tmp_path: Path, rows: list[Row], factor: float, code: int) -> None:
    """This run is a million times slower, or faster, than the old one says it was."""
    append_rows(tmp_path / "old.jsonl", scaled(rows, factor))
    assert bench("--m", 1, "--compare", tmp_path / "old.jsonl") == code


def test_compare_with_nothing_in_common_is_an_error(tmp_path: Path, rows: list[Row]) -> None:
    append_rows(tmp_path / "old.jsonl", [replace(row, m=9999) for row in rows])
    assert bench("--m", 1, "--compare", tmp_path / "old.jsonl") == cli.EXIT_USAGE


def test_a_file_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text('{"op": "int4fp8"}\n')
    assert bench("--compare", path) == cli.EXIT_USAGE
    assert f"{path}:1: not a benchmark row" in capsys.readouterr().err


def test_a_wlib_arm_that_raises_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(TorchBf16):
        name = "wlib+broken"

        def call(self, stored: object, inputs: object) -> torch.Tensor:
            raise NotImplementedError("no kernel for this")

    class BrokenBaseline(Broken):
        name = "torch_broken"

    monkeypatch.setitem(cli.ARMS, "int4fp8", (TorchBf16, BrokenBaseline))
    assert bench("--m", 1) == 0
    monkeypatch.setitem(cli.ARMS, "int4fp8", (TorchBf16, Broken))
    assert bench("--m", 1) == cli.EXIT_FAILED
    assert "wlib+broken: no kernel for this" in capsys.readouterr().out


def test_without_a_gpu_one_must_say_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.run(parser.parse_args(["int4fp8"])) == cli.EXIT_USAGE
    assert "--cpu" in capsys.readouterr().err


def test_plot_and_summary(run_dir: Path, rows: list[Row]) -> None:
    image = (run_dir / "plot.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000
    text = (run_dir / "summary.md").read_text()
    assert text.startswith("# int4fp8 on CPU")
    assert all(f"| {row.shape} | {row.m} | {row.arm} |" in text for row in rows)


def test_table_lines(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    ours = replace(row, median_us=10.0, copy_fraction=0.7512)
    baseline = replace(row, arm="torch_bf16", median_us=31.4)
    shape = suites.Shape(row.shape, row.n, row.k)
    lines = point_cells(Point(shape, row.m, [ours, baseline], {"torch_broken": "no such thing"}))
    first, second, failed = (dict(zip(COLUMNS, line, strict=True)) for line in lines)
    assert (first["us"], first["of copy"], first["gain"]) == ("10.00", "0.751", "")
    assert second["gain"] == "3.14x"
    assert (failed["arm"], failed["us"]) == ("torch_broken", "failed")


def test_summary_judges_decode_targets_on_a_gpu_only(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    on_gpu = replace(row.environment, device="NVIDIA H200", driver="580.1")
    speedup = {"torch_bf16": 3.0, "torch_fp8_rowwise": 1.9, "torch_fp8_tensorwise": 1.4}
    large = replace(row, n=16384, k=16384, m=16, copy_fraction=0.9, speedup=speedup)
    assert "| must |" not in summary.summary([large])
    text = summary.summary([replace(large, environment=on_gpu)])
    assert "| of measured copy bandwidth | 0.70 | 0.82 | 0.90 | 0.90 | aim |" in text
    assert "| x torch_bf16 | 2.80 | 3.20 | 3.00 | 3.00 | must |" in text
    assert "| x the better torch_fp8 | 1.50 | 1.70 | 1.40 | 1.40 | missed |" in text


def test_suites_hold_real_models() -> None:
    assert suites.suite_names() == ["large", "llama3-70b", "llama3-8b", "minilm", "tiny"]
    assert suites.Shape("llama3-8b.down", 4096, 14336) in suites.load_suite("llama3-8b").shapes
    for shape in suites.load_suite("large").shapes:
        assert shape.n * shape.k // 2 >= 64e6
    for name in suites.suite_names():
        suite = suites.load_suite(name)
        assert all(shape.k % suite.group_size == 0 for shape in suite.shapes)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("group_size = 64\nm = [3]\n[shapes]\nq = { n = 10, k = 128 }\n")
    expected = suites.Suite("mine", 64, (3,), (suites.Shape("mine.q", 10, 128),))
    assert suites.load_suite(str(path)) == expected
    path.write_text("m = [3]\n[shapes]\n")
    with pytest.raises(ValueError, match=r"mine\.toml: field 'group_size' is missing"):
        suites.load_suite(str(path))
    with pytest.raises(ValueError, match="no suite 'gpt5': expected one of"):
        suites.load_suite("gpt5")
