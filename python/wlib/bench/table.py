"""Shows a run while it goes: a live table and a progress bar, or plain lines without a terminal."""

import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from .compare import Change
from .rows import COPY, OURS, Row
from .runner import Point

COLUMNS = ("shape", "at", "arm", "us", "low", "high", "GB/s", "of copy", "TFLOP/s", "gain", "SQNR")


def show(points: Iterable[Point], total: int, title: str) -> Iterator[Point]:
    """Pass `points` on, showing each as it comes; `title` names the device."""
    if sys.stdout.isatty() and find_spec("rich"):
        return _show_live(points, total, title)
    return _show_plain(points, total, title)


def cells(row: Row, wlib_us: float | None) -> list[str]:
    """Return `row` as the text of `COLUMNS`; `wlib_us` is the median of wlib at the same point."""
    is_baseline = row.arm != COPY and not row.arm.startswith(OURS)
    return [
        row.shape,
        row.at,
        row.arm,
        *(f"{time:.2f}" for time in (row.median_us, row.low_us, row.high_us)),
        f"{row.gb_per_s:.1f}",
        f"{row.copy_fraction:.3f}",
        f"{row.tflops:.2f}" if row.flops else "",
        f"{row.median_us / wlib_us:.2f}x" if is_baseline and wlib_us else "",
        f"{row.sqnr_db:.1f} dB" if row.sqnr_db is not None else "",
    ]


def point_cells(point: Point) -> list[list[str]]:
    """Return the table lines of one point, arms that failed last."""
    wlib_us = next((row.median_us for row in point.rows if row.arm == OURS), None)
    lines = [cells(row, wlib_us) for row in point.rows]
    blank = [""] * (len(COLUMNS) - 4)
    problem = point.problem
    failed = [[problem.shape, problem.at, arm, "failed", *blank] for arm in point.failures]
    return lines + failed


def show_changes(changes: Iterable[Change]) -> None:
    """Print one line per row that was compared."""
    for change in changes:
        row = change.new
        print(
            f"{change.verdict:>6}  {change.ratio:.3f}x the old time"
            f"  {row.shape} {row.at} {row.arm}"
            f"  {change.old.median_us:.2f} -> {row.median_us:.2f} us"
        )


def _show_plain(points: Iterable[Point], total: int, title: str) -> Iterator[Point]:
    widths = (26, 12, 20, *[9] * 6, 9, 9)
    print(title)
    print("  ".join(name.rjust(width) for name, width in zip(COLUMNS, widths, strict=True)))
    for done, point in enumerate(points, start=1):
        for line in point_cells(point):
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        for arm, message in point.failures.items():
            print(f"{arm}: {message}")
        print(f"[{done}/{total}]", flush=True)
        yield point


def _show_live(points: Iterable[Point], total: int, title: str) -> Iterator[Point]:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    progress = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = progress.add_task("points", total=total)
    lines: list[list[str]] = []

    def render(shown: list[list[str]]) -> Group:
        table = Table(title=title)
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in ("shape", "arm") else "right")
        for line in shown:
            table.add_row(*line)
        return Group(table, progress)

    with Live(render([]), refresh_per_second=4) as live:
        for point in points:
            lines += point_cells(point)
            for arm, message in point.failures.items():
                live.console.print(f"{arm}: {message}", markup=False)
            progress.advance(task)
            live.update(render(lines[-max(1, live.console.height - 7) :]))  # what the screen holds
            yield point
        live.update(render(lines))
