"""Draws a run: how near an op comes to the roofline, and how much faster it is than others."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rows import COPY, OURS, Row

Place = Callable[[Row], str]


def plot(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draw every op of `rows` and return the files; their suffix chooses the format.

    One op is drawn to `path`, several each to a file of its own with the op behind the stem.
    """
    ops = list(dict.fromkeys(row.op for row in rows))
    files = [path if len(ops) == 1 else path.with_stem(f"{path.stem}-{op}") for op in ops]
    for op, file in zip(ops, files, strict=True):
        _figure([row for row in rows if row.op == op and row.arm != COPY]).savefig(file, dpi=150)
    return files


def _figure(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Along an axis where every shape has one, else shape by shape.
    along_axis = all(row.at for row in rows)
    place: Place = (lambda row: row.at) if along_axis else _name
    _plot_roofline(left, rows, place, along_axis)
    _plot_speedup(right, [row for row in rows if row.arm == OURS], place)
    here = rows[0].environment
    figure.suptitle(
        f"{rows[0].op} on {here.device}, torch {here.torch}, {here.commit}, {here.date}"
    )
    return figure


def _name(row: Row) -> str:
    return f"{row.shape.split('.', 1)[1]} {row.at}".strip()


def _plot_roofline(axes: Axes, rows: Sequence[Row], place: Place, along_axis: bool) -> None:
    """The rates of our arm, a line per shape; where there is no axis, of every arm as points."""
    places = list(dict.fromkeys(map(place, rows)))
    shown = [row for row in rows if row.arm == OURS] if along_axis else rows
    key: Place = (lambda row: row.shape) if along_axis else (lambda row: row.arm)
    for name in dict.fromkeys(map(key, shown)):
        curve = [row for row in shown if key(row) == name]
        where = [places.index(place(row)) for row in curve]
        style = "o-" if along_axis else "o"
        axes.plot(where, [row.copy_fraction for row in curve], style, label=name)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(ylabel="fraction of measured copy bandwidth", ylim=(0, None))
    _label(axes, places)


def _plot_speedup(axes: Axes, ours: Sequence[Row], place: Place) -> None:
    """How many times faster than each other arm, the geometric mean over the rows of a place."""
    places = list(dict.fromkeys(map(place, ours)))
    baselines = list(dict.fromkeys(name for row in ours for name in row.speedup))
    baselines = [name for name in baselines if not name.startswith(OURS)]
    width = 0.8 / max(1, len(baselines))
    for index, baseline in enumerate(baselines):
        # a baseline that failed everywhere at some place has no bar there
        having = [row for row in ours if baseline in row.speedup]
        means = {
            where: statistics.geometric_mean(found)
            for where in places
            if (found := [r.speedup[baseline] for r in having if place(r) == where])
        }
        offset = (index - (len(baselines) - 1) / 2) * width
        bars = [places.index(where) + offset for where in means]
        axes.bar(bars, list(means.values()), width, label=baseline)
    axes.set(ylabel="times as fast as", xlim=(-0.6, len(places) - 0.4))
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    _label(axes, places)


def _label(axes: Axes, places: Sequence[str]) -> None:
    axes.set_xticks(range(len(places)), places, rotation=20 if len(places) > 4 else 0)
    axes.grid(alpha=0.3, axis="y")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
