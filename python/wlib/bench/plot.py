"""Draws a run: how near an op comes to the roofline, and how much faster it is than others."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .rows import COPY, OURS, Row

Place = Callable[[Row], str]
Styles = Mapping[str, Mapping[str, Any]]  # of the arms
MARKERS = "s^vDP*X"  # of our own arms; others are dots


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
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = _styles(rows)
    # Along an axis where every shape has one, else shape by shape.
    place: Place = (lambda row: row.at) if all(row.at for row in rows) else _name
    if all(row.flops for row in rows):
        _plot_roofline(left, rows, styles)
    else:
        _plot_bandwidth(left, rows, styles, place)
    _plot_speedup(right, [row for row in rows if row.arm == OURS], styles, place)
    here = rows[0].environment
    figure.suptitle(
        f"{rows[0].op} on {here.device}, torch {here.torch}, {here.commit}, {here.date}"
    )
    names = [Line2D([], [], linestyle="", label=arm, **style) for arm, style in styles.items()]
    figure.legend(handles=names, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _styles(rows: Sequence[Row]) -> Styles:
    """A marker and a colour for every arm, the same in both pictures: ours black, others not."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    ours = [arm for arm in arms if arm.startswith(OURS)]
    others = [arm for arm in arms if arm not in ours]
    own = {
        arm: {"marker": MARKERS[i], "color": "black", "markersize": 5} for i, arm in enumerate(ours)
    }
    return own | {
        arm: {"marker": "o", "color": f"C{i}", "markersize": 5} for i, arm in enumerate(others)
    }


def _name(row: Row) -> str:
    return f"{row.shape.split('.', 1)[1]} {row.at}".strip()


def _places(rows: Sequence[Row], place: Place) -> list[str]:
    """Where rows are drawn, along an axis in the order of its values."""
    along_axis = all(place(row) == row.at for row in rows)
    ordered = sorted(rows, key=_axis_values) if along_axis else rows
    return list(dict.fromkeys(map(place, ordered)))


def _axis_values(row: Row) -> list[int]:
    return [int(word.partition("=")[2]) for word in row.at.split()]


def _plot_roofline(axes: Axes, rows: Sequence[Row], styles: Styles) -> None:
    """The rate of every arm at every point over its operations per byte, below the copy's rate."""
    for arm, style in styles.items():
        points = [(row.flops / row.bytes, row.tflops) for row in rows if row.arm == arm]
        axes.plot(*zip(*points, strict=True), linestyle="", alpha=0.8, **style)
    rate = statistics.median(row.gb_per_s / row.copy_fraction for row in rows) * 1e-3
    ridge = 2 * max(row.tflops for row in rows) / rate  # beyond, arithmetic is the limit
    least = min(row.flops / row.bytes for row in rows)
    roof = [min(least / 1.5, ridge / 4), ridge]
    heights = [intensity * rate for intensity in roof]
    axes.plot(roof, heights, color="black", linewidth=0.8, linestyle=":")
    axes.set_title("dotted: the measured rate of a copy", fontsize="small", loc="left")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s")
    axes.grid(alpha=0.3)


def _plot_bandwidth(axes: Axes, rows: Sequence[Row], styles: Styles, place: Place) -> None:
    """The rate of every arm relative to the copy's, for ops that only move bytes."""
    places = _places(rows, place)
    for arm, style in styles.items():
        own = [row for row in rows if row.arm == arm]
        where = [places.index(place(row)) for row in own]
        axes.plot(where, [row.copy_fraction for row in own], linestyle="", alpha=0.8, **style)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(ylabel="fraction of measured copy bandwidth", ylim=(0, None))
    _label(axes, places)


def _plot_speedup(axes: Axes, ours: Sequence[Row], styles: Styles, place: Place) -> None:
    """How many times faster than each other arm, the geometric mean over the rows of a place."""
    places = _places(ours, place)
    baselines = [arm for arm in styles if not arm.startswith(OURS)]
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
        heights = [mean - 1 for mean in means.values()]  # downwards where ours is slower
        axes.bar(bars, heights, width, bottom=1, color=styles[baseline]["color"])
    axes.set(ylabel=f"{OURS} is so many times as fast as")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    _label(axes, places)


def _label(axes: Axes, places: Sequence[str]) -> None:
    turned = sum(map(len, places)) > 60
    axes.set_xticks(
        range(len(places)), places, rotation=25 if turned else 0,
        ha="right" if turned else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.grid(alpha=0.3, axis="y")
