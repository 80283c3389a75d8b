"""Two panels side by side: the figures of the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(width: float, height: float) -> tuple[Figure, Axes, Axes]:
    """An empty figure, in inches, and its two panels."""
    from matplotlib.figure import Figure  # takes a second; nothing else needs it

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, *figure.subplots(1, 2)


def bars(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """A group of bars for every name, in it one of each series."""
    width = 0.8 / len(series)
    for i, (label, heights) in enumerate(series.items()):
        offset = (i - (len(series) - 1) / 2) * width
        axes.bar([j + offset for j in range(len(names))], heights, width, label=label)
    axes.set_xticks(range(len(names)), names)


def save(figure: Figure, path: Path) -> Figure:
    """Write it with grids and legends; the suffix of path chooses the format."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)  # the grid, behind bars
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return figure
