"""Draws a run: how near the roofline it comes over M, and how much faster than each baseline."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rows import OURS, Row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write the figure of the run `rows` to `path`; its suffix chooses the format."""
    ours = [row for row in rows if row.arm == OURS]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roofline(left, ours)
    _plot_speedup(right, ours)
    here = ours[0].environment
    figure.suptitle(
        f"{ours[0].op} on {here.device}, torch {here.torch}, {here.commit}, {here.date}"
    )
    figure.savefig(path, dpi=150)


def _plot_roofline(axes: Axes, ours: Sequence[Row]) -> None:
    for shape in dict.fromkeys(row.shape for row in ours):
        curve = [row for row in ours if row.shape == shape]
        label = f"{shape} [{curve[0].n}, {curve[0].k}]"
        axes.plot([row.m for row in curve], [row.copy_fraction for row in curve], "o-", label=label)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="M", ylabel="fraction of measured copy bandwidth", ylim=(0, None))
    sizes = sorted({row.m for row in ours})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(m) for m in sizes])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _plot_speedup(axes: Axes, ours: Sequence[Row]) -> None:
    sizes = sorted({row.m for row in ours})
    baselines = list(dict.fromkeys(name for row in ours for name in row.speedup))
    baselines = [name for name in baselines if not name.startswith(OURS)]
    width = 0.8 / max(1, len(baselines))
    for index, baseline in enumerate(baselines):
        # a baseline that failed at every shape of some M has no bar there
        means = {
            m: statistics.geometric_mean(found)
            for m in sizes
            if (found := [r.speedup[baseline] for r in ours if r.m == m and baseline in r.speedup])
        }
        places = [sizes.index(m) + (index - (len(baselines) - 1) / 2) * width for m in means]
        axes.bar(places, list(means.values()), width, label=baseline)
    axes.set(ylabel="speed-up, geometric mean over shapes", xlabel="M")
    axes.set_xticks(range(len(sizes)), [str(m) for m in sizes])
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.legend(fontsize="small")
