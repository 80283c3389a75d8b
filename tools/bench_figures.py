"""Writes the figures of README.md from the runs in bench/results, between two comments.

Per GPU and op, the latest run that has the op is shown: wlib against every other arm, as medians of
the same run. Runs on a CPU, and rows that `python -m wlib bench` did not write, are no figures.
Without a run on a GPU the text says that there is none.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from wlib.bench.rows import COPY, OURS, Row, read_rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN = "<!-- figures: written by `make docs` from bench/results -->\n"
END = "<!-- end of figures -->\n"
NONE = """\
No figure of speed is printed here, because none has been measured on a GPU yet: the Hopper
kernels are `simulated` and `compiled`, as the [support matrix](docs/support_matrix.md) says kernel
by kernel. `make gpu` does in one go, on an H100 or H200, what is needed to change that.
"""
HEADER = """\
| op | points | share of a copy's bandwidth | against | times as fast, mean (least to most) |
| --- | --- | --- | --- | --- |
"""


def page(text: str, rows: Iterable[Row]) -> str:
    """Return `text` with the figures of `rows` between its two comments."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + figures(rows) + END + after


def figures(rows: Iterable[Row]) -> str:
    """Return a table per GPU, or that there are none."""
    on_gpu = [row for row in rows if row.environment.driver]
    devices = sorted({row.environment.device for row in on_gpu})
    tables = [_table([r for r in on_gpu if r.environment.device == name]) for name in devices]
    return "\n".join(tables) or NONE


def _table(rows: Sequence[Row]) -> str:
    lines = [
        f"**{rows[0].environment.device}**: medians of interleaved runs, weights rotated through "
        "more than four times the L2 cache ([how](bench/README.md)).\n\n",
        HEADER,
    ]
    runs = set()
    for op in dict.fromkeys(row.op for row in rows):
        own = _latest([row for row in rows if row.op == op])
        lines += _lines(own)
        runs.add(_run(own[0]))
    return "".join([*lines, "\nMeasured with ", "; ".join(sorted(runs)), ".\n"])


def _latest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last run: a ratio is of one run, so runs are not mixed."""
    last = max(row.environment.date for row in rows)
    return [row for row in rows if row.environment.date == last]


def _run(row: Row) -> str:
    here = row.environment
    return f"torch {here.torch}, CUDA {here.cuda}, commit {here.commit}, {here.date[:10]}"


def _lines(rows: Sequence[Row]) -> list[str]:
    """A line per arm that is not ours, in the order of the run."""
    ours = [row for row in rows if row.arm == OURS]
    if not ours:
        return []
    shares = [row.copy_fraction for row in ours]
    names = [rows[0].op, str(len(ours)), f"{min(shares):.2f} to {max(shares):.2f}"]
    lines = []
    versions = {row.arm: row.version for row in rows}
    for arm, version in versions.items():
        if arm == COPY or arm.startswith(OURS):
            continue
        found = [row.speedup[arm] for row in ours if arm in row.speedup]
        if not found:  # ours failed wherever this arm did not
            continue
        mean = statistics.geometric_mean(found)
        ratio = f"{mean:.2f} ({min(found):.2f} to {max(found):.2f})"
        lines.append(f"| {' | '.join([*names, f'{arm}, {version}', ratio])} |\n")
        names = [""] * 3
    return lines


def committed_rows() -> list[Row]:
    """Return the rows of every committed run."""
    return [row for path in sorted(RESULTS.rglob("*.jsonl")) for row in read_rows(path)]


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(), committed_rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
