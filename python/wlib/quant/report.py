"""What a quantisation did to every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


def decibels(signal: Tensor, noise: Tensor) -> float:
    """Ratio of the energies of two tensors in dB; infinite without noise."""
    ratio = float(signal.double().square().sum() / noise.double().square().sum())
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


@dataclass(frozen=True)
class LayerReport:
    """One layer [N, K].

    Attributes:
        name: dotted name.
        n, k: output and input features.
        weight_mse: mean squared error of the weight, in its own units squared.
        weight_sqnr: energy of the weight over that of its error, dB.
        output_sqnr: energy of the float layer's output over that of the quantised layer's error,
            activations in FP8, on calibration inputs; dB, or None if no input reached the layer.
    """

    name: str
    n: int
    k: int
    weight_mse: float
    weight_sqnr: float
    output_sqnr: float | None


@dataclass(frozen=True)
class Report:
    """The layers in the order they were quantised; prints as a table."""

    layers: tuple[LayerReport, ...]

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self))
        head = f"{'layer':{width}}  {'N':>6} {'K':>6}  weight MSE  weight SQNR  output SQNR"
        lines = [head, "-" * len(head)]
        for layer in self:
            output = "-" if layer.output_sqnr is None else f"{layer.output_sqnr:.2f} dB"
            lines.append(
                f"{layer.name:{width}}  {layer.n:6} {layer.k:6}  {layer.weight_mse:10.3e}"
                f"  {layer.weight_sqnr:8.2f} dB  {output:>11}"
            )
        return "\n".join(lines)

    def plot(self, path: Path | str) -> None:
        """Write a chart of both SQNRs, layer by layer; the suffix of path chooses its format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(6.0, 0.25 * len(self.layers)), 5), layout="constrained")
        axes = figure.subplots()
        places = range(len(self.layers))
        axes.plot(places, [layer.weight_sqnr for layer in self], "o-", label="weight")
        outputs = [math.nan if x.output_sqnr is None else x.output_sqnr for x in self]
        axes.plot(places, outputs, "o-", label="output")
        axes.set_xticks(places, [layer.name for layer in self], rotation=90, fontsize="small")
        axes.set(ylabel="SQNR, dB")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)
