"""The figures of README.md: from committed runs, and none without one."""

from dataclasses import replace

import pytest

import bench_figures
from wlib.bench.environment import Environment
from wlib.bench.rows import Row

H200 = Environment("NVIDIA H200", "c0ffee", "1", "2.11.0", "13.0", "580.1", "3.12", "2026-01-02")
CPU = replace(H200, device="CPU (some)", cuda=None, driver=None)


def row(arm: str, shape: str, us: float, others: dict[str, float], **changes: object) -> Row:
    sizes = {"m": 1, "n": 2, "k": 3}
    times = dict.fromkeys(("median_us", "low_us", "high_us", "p10_us", "p90_us"), us)
    figures = {"rounds": 9, "copies": 2, "bytes": 8, "flops": 12, "gb_per_s": 1.0, "tflops": 1.0}
    errors = dict.fromkeys(("sqnr_db", "max_rel_error", "format_sqnr_db"), 1.0)
    one = Row(
        op="int4fp8", shape=shape, at="", sizes=sizes, arm=arm, version=f"{arm} 1.0", dtype="x",
        copy_fraction=0.5, speedup={name: other / us for name, other in others.items()}, seed=1,
        sm_clock_mhz=None, power_w=None, environment=H200, **times, **figures, **errors,
    )  # fmt: skip
    return replace(one, **changes)


def run() -> list[Row]:
    """Two shapes, one of which a peer cannot solve."""
    first, second = {"torch_bf16": 20.0, "humming": 11.0}, {"torch_bf16": 80.0}
    return [
        row("copy", "a", 5.0, {}),
        row("wlib", "a", 10.0, first, copy_fraction=0.75),
        row("torch_bf16", "a", 20.0, {"wlib": 10.0}),
        row("humming", "a", 11.0, {"wlib": 10.0}),
        row("wlib+quantize", "b", 12.0, {}),
        row("wlib", "b", 10.0, second, copy_fraction=0.25),
        row("torch_bf16", "b", 80.0, {"wlib": 10.0}),
    ]


def test_the_page_holds_the_committed_runs() -> None:
    text = bench_figures.PAGE.read_text()
    assert text == bench_figures.page(text, bench_figures.committed_rows()), "run `make docs`"


def test_without_a_gpu_there_is_no_figure() -> None:
    assert bench_figures.figures([]) == bench_figures.NONE
    assert "No figure of speed" in bench_figures.NONE
    cpu = [replace(one, environment=CPU) for one in run()]
    assert bench_figures.figures(cpu) == bench_figures.NONE


def test_every_other_arm_is_a_line_with_its_version() -> None:
    lines = bench_figures.figures(run()).splitlines()
    assert lines[0].startswith("**NVIDIA H200**: ")
    assert lines[4:6] == [
        "| int4fp8 | 2 | 0.25 to 0.75 | torch_bf16, torch_bf16 1.0 | 4.00 (2.00 to 8.00) |",
        "|  |  |  | humming, humming 1.0 | 1.10 (1.10 to 1.10) |",
    ]
    assert lines[-1] == "Measured with torch 2.11.0, CUDA 13.0, commit c0ffee, 2026-01-02."


def test_the_latest_run_of_an_op_counts_and_runs_are_not_mixed() -> None:
    later = replace(H200, date="2026-02-01", commit="beef")
    other_op = [replace(one, op="prefill") for one in run()]
    newer = [row("wlib", "a", 10.0, {"torch_bf16": 30.0}), row("torch_bf16", "a", 30.0, {})]
    rows = [replace(one, environment=later) for one in newer]
    text = bench_figures.figures([*rows, *run(), *other_op])
    assert (
        "| int4fp8 | 1 | 0.50 to 0.50 | torch_bf16, torch_bf16 1.0 | 3.00 (3.00 to 3.00) |" in text
    )
    assert "| prefill | 2 |" in text
    assert "commit beef, 2026-02-01; torch" in text


@pytest.mark.parametrize("text", ["", "<!-- end of figures -->\n"])
def test_a_page_without_its_comments_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        bench_figures.page(text, [])
