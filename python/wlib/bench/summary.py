"""A run as Markdown: what was measured where, every point, and how it stands to the targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .rows import OURS, Row
from .table import COLUMNS, cells

DECODE_M, LARGE_WEIGHT_BYTES = 16, 64_000_000


@dataclass(frozen=True)
class Target:
    """A bar for the worst point of the decode regime: must reach, and aim."""

    name: str
    must: float
    aim: float
    figure: Callable[[Row], float | None]


TARGETS = (
    Target("of measured copy bandwidth", 0.70, 0.82, lambda row: row.copy_fraction),
    Target("x torch_bf16", 2.8, 3.2, lambda row: row.speedup.get("torch_bf16")),
    Target("x the better torch_fp8", 1.5, 1.7, lambda row: _against(row, "torch_fp8")),
)


def summary(rows: Sequence[Row]) -> str:
    """Return the run `rows` as a Markdown page."""
    here = rows[0].environment
    lines = [
        f"# {rows[0].op} on {here.device}",
        "",
        f"Commit {here.commit}, build {here.build_id}, torch {here.torch}, CUDA {here.cuda}, "
        f"driver {here.driver}, Python {here.python}, {here.date}.",
        "Microseconds per call, medians with p10 and p90; `of copy` is the rate over that of a "
        "large copy in the same run, `gain` how many times faster wlib is.",
        "",
        *_targets(rows),
        *_table(COLUMNS, _cells(rows)),
    ]
    return "\n".join(lines) + "\n"


def _targets(rows: Sequence[Row]) -> list[str]:
    """Lines on the decode targets; they are stated for GPUs and for weights no L2 can hold."""
    decode = [
        row
        for row in rows
        if row.arm == OURS
        and row.m <= DECODE_M
        and row.n * row.k // 2 >= LARGE_WEIGHT_BYTES
        and row.environment.driver
    ]
    if not decode:
        return []
    found = []
    for target in TARGETS:
        figures = [figure for row in decode if (figure := target.figure(row)) is not None]
        if not figures:
            continue
        worst, best = min(figures), max(figures)
        verdict = "aim" if worst >= target.aim else "must" if worst >= target.must else "missed"
        found.append(
            [target.name, *(f"{x:.2f}" for x in (target.must, target.aim, worst, best)), verdict]
        )
    heading = f"Decode, M <= {DECODE_M}, INT4 weights of at least {LARGE_WEIGHT_BYTES // 10**6} MB:"
    names = ("figure", "must", "aim", "worst point", "best point", "reached by all points")
    return [heading, "", *_table(names, found), ""]


def _against(row: Row, baseline: str) -> float | None:
    """The speed-up over the fastest of the arms whose name begins with `baseline`."""
    found = [value for name, value in row.speedup.items() if name.startswith(baseline)]
    return min(found, default=None)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    wlib_us = {row.point: row.median_us for row in rows if row.arm == OURS}
    return [cells(row, wlib_us.get(row.point)) for row in rows]


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(names)
    return [f"| {' | '.join(line)} |" for line in (names, rule, *lines)]
