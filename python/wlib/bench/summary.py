"""A run as Markdown: what was measured where, every point, and how it stands to the targets."""

from collections.abc import Sequence

from .op import Target
from .ops import OPS
from .rows import OURS, Row
from .table import COLUMNS, cells


def summary(rows: Sequence[Row]) -> str:
    """Return the run `rows` as a Markdown page, op by op."""
    here = rows[0].environment
    ops = list(dict.fromkeys(row.op for row in rows))
    lines = [
        f"# Benchmark on {here.device}",
        "",
        f"Commit {here.commit}, build {here.build_id}, torch {here.torch}, CUDA {here.cuda}, "
        f"driver {here.driver}, Python {here.python}, {here.date}.",
        "Microseconds per call, medians with their 95 % interval; `of copy` is the rate over that "
        "of a large copy in the same run, `gain` how many times faster wlib is.",
        "",
    ]
    for op in ops:
        own = [row for row in rows if row.op == op]
        lines += [f"## {op}", "", *_targets(own), *_table(COLUMNS, _cells(own)), ""]
    return "\n".join(lines)


def _targets(rows: Sequence[Row]) -> list[str]:
    """Lines on the op's targets; they are stated for GPUs."""
    if not rows[0].environment.driver:
        return []
    lines = [line for target in OPS[rows[0].op].targets if (line := _judge(target, rows))]
    names = ("figure", "must", "aim", "worst point", "best point", "reached by all points")
    return [*_table(names, lines), ""] if lines else []


def _judge(target: Target, rows: Sequence[Row]) -> list[str] | None:
    """The line of one target, None if no point of the run is of its kind."""
    points = [row for row in rows if row.arm == target.arm and target.where(row.sizes)]
    figures = [figure for row in points if (figure := target.figure(row)) is not None]
    if not figures:
        return None
    worst = min(figures)
    verdict = "aim" if worst >= target.aim else "must" if worst >= target.must else "missed"
    return [
        target.name,
        *(f"{x:.2f}" for x in (target.must, target.aim, worst, max(figures))),
        verdict,
    ]


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    wlib_us = {row.point: row.median_us for row in rows if row.arm == OURS}
    return [cells(row, wlib_us.get(row.point)) for row in rows]


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(names)
    return [f"| {' | '.join(line)} |" for line in (names, rule, *lines)]
