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
from wlib.bench.ops import OPS
from wlib.bench.ops.matmul import TorchBf16
from wlib.bench.rows import COPY, OURS, Row, append_rows, read_rows
from wlib.bench.runner import COPY_BYTES, Plan, Point
from wlib.bench.table import COLUMNS, point_cells

TIMES = ("median_us", "low_us", "high_us", "p10_us", "p90_us")
BASELINES = {"torch_bf16", "torch_fp8_rowwise", "torch_fp8_tensorwise", "torch_fp32"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny problems on many threads measure how busy the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(*arguments: object, op: str = "int4fp8") -> int:
    """Run `python -m wlib bench int4fp8 --cpu --quick` with more `arguments`."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [op, "--cpu", "--quick", "--shapes", "tiny", *map(str, arguments)]
    return cli.run(parser.parse_args(words))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything one run of the tool writes."""
    path = tmp_path_factory.mktemp("bench")
    files = [
        f"--{kind}={path / name}"
        for kind, name in [("json", "rows.jsonl"), ("summary", "summary.md"), ("plot", "plot.png")]
    ]
    assert bench(*files, op="all") == 0
    return path


@pytest.fixture
def every(run_dir: Path) -> list[Row]:
    """The rows of all ops."""
    return read_rows(run_dir / "rows.jsonl")


@pytest.fixture
def rows(every: list[Row]) -> list[Row]:
    return [row for row in every if row.op == "int4fp8"]


def scaled(rows: list[Row], factor: float) -> list[Row]:
    """The same run, every time multiplied by `factor`."""
    return [replace(row, **{name: getattr(row, name) * factor for name in TIMES}) for row in rows]


def test_every_point_has_every_arm(rows: list[Row]) -> None:
    assert {row.shape for row in rows} == {"tiny.square", "tiny.wide"}
    for point in {row.point for row in rows}:
        arms = [row.arm for row in rows if row.point == point]
        assert sorted(arms) == sorted({COPY, OURS, "wlib+quantize"} | BASELINES)
    assert {row.sizes["m"] for row in rows} == {1, 5}


def test_every_op_is_measured_and_right(every: list[Row]) -> None:
    assert {row.op for row in every} == set(OPS)
    for row in every:
        if row.sqnr_db is not None:  # what is left is the rounding to BF16, of both sides at times
            assert row.sqnr_db > 45, row
        if row.arm == OURS:
            assert row.median_us > 0
            assert any(not name.startswith(OURS) for name in row.speedup), row.op


def test_flops_and_bytes_of_attention(every: list[Row]) -> None:
    found = {(r.shape, r.at): r for r in every if r.op == "prefill" and r.arm == OURS}
    pairs = {("tiny.causal", "q=7"): sum(range(59, 66)), ("tiny.causal", "q=65"): 65 * 66 // 2,
             ("tiny.full", ""): 65 * 65}  # fmt: skip
    assert {key: row.flops for key, row in found.items()} == {
        key: 4 * 4 * 64 * count for key, count in pairs.items()
    }
    cache = 2 * 2 * 2 * (64 * 32 + 64 * 4)  # k and v: two blocks of two heads
    queries, out = 7 * 4 * (64 + 4), 7 * 4 * 64 * 2
    assert found["tiny.causal", "q=7"].bytes == cache + queries + out


def test_an_arm_that_cannot_solve_a_problem_is_no_failure(every: list[Row]) -> None:
    ours = {(r.shape, r.at) for r in every if r.op == "prefill" and r.arm == "wlib_fp8_kv"}
    assert ours == {("tiny.causal", "q=65"), ("tiny.full", "")}  # not 7 queries over 65 keys


def test_lines_are_flat_json_with_the_fields_of_a_row(run_dir: Path) -> None:
    for line in (run_dir / "rows.jsonl").read_text().splitlines():
        data = json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
        assert set(data) == {field.name for field in fields(Row)}


def test_figures_follow_from_times_and_sizes(rows: list[Row]) -> None:
    for row in rows:
        copy = next(r for r in rows if r.point == row.point and r.arm == COPY)
        assert 0 < row.p10_us <= row.median_us <= row.p90_us
        assert row.low_us <= row.median_us <= row.high_us
        assert row.gb_per_s == pytest.approx(row.bytes / row.median_us / 1e3)
        assert row.copy_fraction == pytest.approx(row.gb_per_s / copy.gb_per_s)
        assert row.flops == (0 if row.arm == COPY else 2 * math.prod(row.sizes[x] for x in "mnk"))
        assert row.tflops == pytest.approx(row.flops / row.median_us / 1e6)
        for other in (r for r in rows if r.point == row.point and r.arm not in (COPY, row.arm)):
            assert row.speedup[other.arm] == pytest.approx(other.median_us / row.median_us)
        assert row.environment.device.startswith("CPU")
        assert row.sm_clock_mhz is None
        assert row.environment.cuda == torch.version.cuda


def test_bytes_are_those_of_the_stored_operands(rows: list[Row]) -> None:
    copied = {r.bytes for r in rows if r.arm == COPY}
    assert copied == {2 * COPY_BYTES["cpu"]}  # read and written
    row = next(
        r for r in rows if r.arm == "torch_bf16" and r.shape == "tiny.wide" and r.at == "m=5"
    )
    assert row.bytes == 2 * (192 * 64 + 5 * 64 + 5 * 192)
    ours = next(r for r in rows if r.arm == OURS and r.shape == "tiny.square" and r.at == "m=5")
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
    assert {result.low_us, result.high_us} <= set(samples)
    assert result.low_us <= result.median_us <= result.high_us


def test_the_interval_holds_the_median_in_95_of_100_runs() -> None:
    generator = np.random.default_rng(0)
    runs = [timing.summarize(generator.exponential(size=40).tolist()) for _ in range(2000)]
    hits = sum(run.low_us <= math.log(2) <= run.high_us for run in runs)
    assert 0.94 < hits / 2000 < 0.99  # 0.962 by the binomial distribution of 40
    assert max(run.high_us - run.low_us for run in runs) < 3


def measured(arms: dict[str, list[timing.Call]]) -> dict[str, timing.Timing]:
    laps = {name: timing.make_lap(calls, torch.device("cpu")) for name, calls in arms.items()}
    return timing.measure(laps, budget_s=0.01)


def test_measure_counts_every_call_and_takes_turns() -> None:
    order = []
    calls = {
        name: [lambda name=name, i=i: order.append((name, i)) for i in range(3)] for name in "ab"
    }
    result = measured(calls)
    assert set(result) == {"a", "b"}
    assert [i for name, i in order if name == "a"] == [0, 1, 2] * (order.count(("a", 0)))
    turns = [name for name, i in order if i == 0]
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes >= timing.MIN_ROUNDS  # interleaved, not one arm after the other


def test_measure_tells_a_slow_arm_from_a_fast_one() -> None:
    calls = {"fast": [lambda: time.sleep(1e-3)] * 10, "slow": [lambda: time.sleep(1e-2)]}
    result = measured(calls)
    assert 1e3 <= result["fast"].median_us < 8e3 < 1e4 <= result["slow"].median_us < 1e5


def test_a_run_is_not_slower_than_itself(rows: list[Row]) -> None:
    found = compare.changes(rows, rows)
    assert len(found) == sum(row.arm != COPY for row in rows)
    assert all(change.verdict == "same" and change.ratio == 1 for change in found)


def test_verdict_needs_disjoint_intervals_and_a_margin(rows: list[Row]) -> None:
    old = replace(rows[0], arm=OURS, median_us=100.0, low_us=98.0, high_us=102.0)
    cases = {
        (120.0, 110.0, 130.0): "slower",
        (120.0, 101.0, 130.0): "same",  # the intervals overlap
        (104.0, 103.0, 105.0): "same",  # disjoint, but within the margin
        (80.0, 75.0, 90.0): "faster",
        (80.0, 75.0, 99.0): "same",
    }
    for (median, low, high), verdict in cases.items():
        new = replace(old, median_us=median, low_us=low, high_us=high)
        assert compare.changes([old], [new])[0].verdict == verdict


def test_other_devices_arms_and_shapes_are_not_compared(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    elsewhere = replace(row, environment=replace(row.environment, device="NVIDIA H200"))
    others = [elsewhere, replace(row, arm="else"), replace(row, sizes=row.sizes | {"m": 77})]
    assert compare.changes(others, [row]) == []


@pytest.mark.parametrize(("factor", "code"), [(1e-6, cli.EXIT_SLOWER), (1e6, 0)])
def test_compare_exit_code(tmp_path: Path, rows: list[Row], factor: float, code: int) -> None:
    """This run is a million times slower, or faster, than the old one says it was."""
    append_rows(tmp_path / "old.jsonl", scaled(rows, factor))
    assert bench("--m", 1, "--compare", tmp_path / "old.jsonl") == code


def test_compare_with_nothing_in_common_is_an_error(tmp_path: Path, rows: list[Row]) -> None:
    append_rows(
        tmp_path / "old.jsonl", [replace(row, sizes=row.sizes | {"m": 9999}) for row in rows]
    )
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

    op = OPS["int4fp8"]
    monkeypatch.setitem(OPS, "int4fp8", replace(op, arms=(TorchBf16, BrokenBaseline)))
    assert bench("--m", 1) == 0
    monkeypatch.setitem(OPS, "int4fp8", replace(op, arms=(TorchBf16, Broken)))
    assert bench("--m", 1) == cli.EXIT_FAILED
    assert "wlib+broken: NotImplementedError: no kernel for this" in capsys.readouterr().out


def test_ops_share_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a clock of its own, on which a point takes 10 seconds."""
    clock = [0.0]

    def points(plan: Plan) -> Iterator[Point]:
        for problem in plan.problems:
            clock[0] += 10
            yield Point(problem, [], {})

    def plan(op: str, count: int) -> Plan:
        problems = (suites.Problem(op, "a.b", "", {}),) * count
        return Plan(OPS[op], problems, torch.device("cpu"), 1.0, None)

    monkeypatch.setattr(cli, "measure_plan", points)
    monkeypatch.setattr(cli.time, "monotonic", lambda: clock[0])
    plans = [plan("int4fp8", 9), plan("prefill", 1), plan("kv_append", 9)]
    found = [point.problem.op for point in cli._within(plans, 90)]
    assert found == ["int4fp8"] * 3 + ["prefill"] + ["kv_append"] * 5
    assert capsys.readouterr().out.splitlines() == [
        "int4fp8: 3 of 9 points, out of time",
        "kv_append: 5 of 9 points, out of time",
    ]


def test_without_a_gpu_one_must_say_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.run(parser.parse_args(["int4fp8"])) == cli.EXIT_USAGE
    assert "--cpu" in capsys.readouterr().err


def test_plot_as_svg(tmp_path: Path, rows: list[Row]) -> None:
    plot = pytest.importorskip("wlib.bench.plot")
    (file,) = plot.plot(rows, tmp_path / "one.svg")
    assert file == tmp_path / "one.svg"
    assert "</svg>" in file.read_text()


def test_plot_and_summary(run_dir: Path, every: list[Row]) -> None:
    for op in OPS:
        image = (run_dir / f"plot-{op}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 10_000
    text = (run_dir / "summary.md").read_text()
    assert text.startswith("# Benchmark on CPU")
    assert all(f"## {op}\n" in text for op in OPS)
    assert all(f"| {row.shape} | {row.at} | {row.arm} |" in text for row in every)


def test_table_lines(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    ours = replace(row, median_us=10.0, copy_fraction=0.7512)
    baseline = replace(row, arm="torch_bf16", median_us=31.4)
    problem = suites.Problem(row.op, row.shape, row.at, row.sizes)
    lines = point_cells(Point(problem, [ours, baseline], {"torch_broken": "no such thing"}))
    first, second, failed = (dict(zip(COLUMNS, line, strict=True)) for line in lines)
    assert (first["us"], first["of copy"], first["gain"]) == ("10.00", "0.751", "")
    assert second["gain"] == "3.14x"
    assert (failed["arm"], failed["us"]) == ("torch_broken", "failed")


def test_summary_judges_targets_on_a_gpu_only(rows: list[Row]) -> None:
    row = next(row for row in rows if row.arm == OURS)
    on_gpu = replace(row.environment, device="NVIDIA H200", driver="580.1")
    speedup = {"torch_bf16": 3.0, "torch_fp8_rowwise": 1.9, "torch_fp8_tensorwise": 1.4}
    sizes = {"m": 16, "n": 16384, "k": 16384, "group_size": 128}
    large = replace(row, sizes=sizes, copy_fraction=0.95, speedup=speedup)
    assert "| must |" not in summary.summary([large])
    text = summary.summary([replace(large, environment=on_gpu)])
    assert "| of copy bandwidth, M <= 16, from 64 MB | 0.70 | 0.90 | 0.95 | 0.95 | aim |" in text
    assert "| x torch_bf16, M <= 16, from 64 MB | 2.80 | 3.50 | 3.00 | 3.00 | must |" in text
    worst = "| x the better torch_fp8, M <= 16, from 64 MB | 1.50 | 1.85 | 1.40 | 1.40 | missed |"
    assert worst in text
    assert "M from 4096" not in text  # no such point


def test_every_target_meets_a_point_of_some_suite() -> None:
    loaded = [suites.load_suite(name) for name in suites.suite_names()]
    for op in OPS.values():
        sizes = [p.sizes for s in loaded if op.name in s.tables for p in s.problems(op)]
        arms = {arm.name for arm in op.arms}
        for target in op.targets:
            assert target.arm in arms
            assert any(map(target.where, sizes)), target.name


def test_suites_hold_real_models() -> None:
    names = ["large", "llama3-70b", "llama3-8b", "minilm", "mixtral-8x7b", "qwen2.5-7b", "tiny"]
    assert suites.suite_names() == names
    op = OPS["int4fp8"]
    down = suites.Problem(
        "int4fp8", "llama3-8b.down", "m=1", {"group_size": 128, "m": 1, "n": 4096, "k": 14336}
    )
    assert down in list(suites.load_suite("llama3-8b").problems(op))
    for problem in suites.load_suite("large").problems(op):
        assert problem.sizes["n"] * problem.sizes["k"] // 2 >= 64e6
    for name in names:
        suite = suites.load_suite(name)
        assert suite.tables.keys() <= OPS.keys()
        for table in suite.tables:
            assert list(suite.problems(OPS[table]))  # every size is named, none is missing


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path, op = tmp_path / "mine.toml", OPS["int4fp8"]
    path.write_text("[int4fp8]\ngroup_size = 64\nm = [3]\nshapes.q = { n = 10, k = 128 }\n")
    sizes = {"group_size": 64, "m": 3, "n": 10, "k": 128}
    suite = suites.load_suite(str(path))
    assert list(suite.problems(op)) == [suites.Problem("int4fp8", "mine.q", "m=3", sizes)]
    assert [p.at for p in suite.problems(op, (1, 2))] == ["m=1", "m=2"]
    with pytest.raises(ValueError, match=r"suite 'mine' has no table \[prefill\]"):
        list(suite.problems(OPS["prefill"]))
    path.write_text("[int4fp8]\nm = 3\nshapes.q = { n = 10, k = 128 }\n")
    with pytest.raises(ValueError, match=r"mine\.q: \[int4fp8\] needs .*, see \['group_size'\]"):
        list(suites.load_suite(str(path)).problems(op))
    with pytest.raises(ValueError, match=r"\[int4fp8\] of suite 'mine' has no axis 'm'"):
        list(suites.load_suite(str(path)).problems(op, (1,)))
    path.write_text("[int4fp8\n")
    with pytest.raises(ValueError, match=r"mine\.toml: "):
        suites.load_suite(str(path))
    with pytest.raises(ValueError, match="no suite 'gpt5': expected one of"):
        suites.load_suite("gpt5")
