"""Draws docs/sizes.svg, what is stored relative to BF16, from sizes the library itself tells."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import torch
from matplotlib.figure import Figure

import wlib

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "sizes.svg"
# Fixed, so that the same sizes give the same file.
matplotlib.rcParams["svg.hashsalt"] = "wlib"


def packed_weight(rows: int = 4096, columns: int = 4096) -> float:
    """INT4 codes and their scales, groups of 128."""
    weight = wlib.Int4Weight.quantize(torch.ones(rows, columns), group_size=128)
    return weight.pack().data.numel() / (2 * rows * columns)


def cache(heads: int = 8, dim: int = 128) -> float:
    """INT4 keys and values and their scales, per token and head."""
    kv = wlib.Int4KVCache.allocate(1, heads, dim)
    return kv.bytes_per_token / (2 * 2 * heads * dim)


def saved_for_backward(rows: int = 256, columns: int = 512) -> float:
    """An operand of a linear layer in MXFP4: codes and their scales."""
    q = wlib.fp4_quantize(torch.ones(rows, columns))
    return (q.codes.numel() + q.scales.numel()) / (2 * rows * columns)


def shared_atoms(layers: int = 12, width: int = 768, atoms: int = 4) -> float:
    """The atoms of a projection of all layers; the few coefficients are left out."""
    return atoms * width * width / (layers * width * width)


def bars() -> dict[str, float]:
    """What is stored -> its bytes relative to BF16."""
    return {
        "INT4 weights, groups of 128": packed_weight(),
        "INT4 keys and values, head_dim 128": cache(),
        "FP4 operands kept for backward": saved_for_backward(),
        "12 layers from 4 shared atoms": shared_atoms(),
    }


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    shown = {"BF16": 1.0, **bars()}
    colours = ["#b8b8b8", *["#2a78d6"] * (len(shown) - 1)]
    for place, (colour, (name, share)) in enumerate(zip(colours, shown.items(), strict=True)):
        axes.barh(place, share, color=colour)
        axes.text(share + 0.01, place, f"{share:.3f}", va="center")
        axes.text(-0.01, place, name, va="center", ha="right")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel="bytes, relative to BF16")
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(PICTURE)
