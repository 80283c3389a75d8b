"""Matrix PCA: optimal, orthonormal, stable in low precision; what it keeps of real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wlib
from example_modules import example


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost much more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_real_weights_beside_truncated_svds() -> None:
    """At the same budget, all numbers counted: where Matrix PCA is ahead, and where it is not."""
    share = example("share_minilm")
    rows = {
        (row.kinds, row.kept): row for row in share.compare((1 / 2, 0.8, 0.9), rounds=0, quiet=True)
    }
    for (kinds, kept), row in rows.items():
        print(
            f"{kinds:4} {kept:.2f} SVD {row.svd:.4f} PCA {row.matrices:.4f} heads {row.heads:.4f}"
        )
        units = 24 if kinds == "QKVO" else 6
        # Atoms hold more than as many of the units would, and heads can be chosen more finely.
        assert int(kept * units * 0.99) / units < row.matrices < row.heads < 1
    joint = rows["QKVO", 0.8], rows["QKVO", 0.9]  # the cuts of MASA's conversions, and less
    for row in joint:
        assert row.matrices > row.svd + 0.005
        assert row.heads > row.svd + 0.02
    # A dictionary for each kind has only six matrices to share from.
    ahead = {key for key, row in rows.items() if row.matrices > row.svd}
    assert ahead == {("QKVO", 0.8), ("QKVO", 0.9)}
    ahead = {kinds for (kinds, kept), row in rows.items() if kept == 0.8 and row.heads > row.svd}
    assert ahead == {"V", "QKVO"}
    for (_, kept), row in rows.items():
        assert kept > 0.5 or row.svd > row.heads + 0.04  # an SVD makes more of half of the numbers


def test_heads_turned_alike_beat_truncated_svds_at_two_thirds_of_the_numbers() -> None:
    share = example("share_minilm")
    weights = share.attention_weights()
    turned = share.turn_heads(weights, 2 / 3, rounds=2)
    found = turned.view(2, 72, 2, 32, 384)
    for kinds, pairs in zip(("QK", "VO"), found, strict=True):
        first, second = (weights[kind].view(72, 32, 384) for kind in kinds)
        assert torch.allclose(pairs[:, 0].mT @ pairs[:, 1], first.mT @ second, atol=1e-4)
    svd = share.svd_energy(torch.cat(list(weights.values())), (2 / 3,))[0]
    assert share.pca_energy(turned, 2 / 3) > svd + 0.006


def test_svds_and_heads_of_the_example_are_what_they_say() -> None:
    share = example("share_minilm")
    weights = share.attention_weights()
    assert {tuple(w.shape) for w in weights.values()} == {(6, 384, 384)}
    torch.manual_seed(3)
    low = torch.randn(5, 12, 3) @ torch.randn(5, 3, 12)
    whole, part = share.svd_energy(low, (0.5, 0.49))  # rank 3 takes half of the numbers
    assert part < 0.99 < whole == pytest.approx(1)
    two = torch.randn(2, 12, 12)
    units = torch.einsum("ns,sij->nij", torch.randn(6, 2), two)
    assert share.pca_energy(units, 2 * (144 + 6) / (6 * 144) + 1e-9) == pytest.approx(1)
    assert share.pca_energy(units, 2 * (144 + 6) / (6 * 144) - 1e-9) < 0.99


def test_the_example_draws_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share = example("share_minilm")
    rows = [
        share.Row("Q", 0.5, 0.76, 0.38, 0.58, None),
        share.Row("QKVO", 0.5, 0.75, 0.63, 0.70, 0.77),
        share.Row("QKVO", 0.8, 0.89, 0.90, 0.92, 0.93),
    ]
    left, right = share.plot(rows, tmp_path / "share.svg").axes
    assert "<svg" in (tmp_path / "share.svg").read_text()[:1000]
    shares = [list(line.get_ydata()) for line in left.lines]
    assert shares == [[0.75, 0.89], [0.63, 0.90], [0.70, 0.92], [0.77, 0.93]]
    assert all(list(line.get_xdata()) == [50, 80] for line in left.lines)
    assert [line.get_ydata()[0] for line in right.lines] == pytest.approx([0, -12, -5, 2])
    names = [text.get_text() for text in left.get_legend().get_texts()]
    monkeypatch.setattr(share, "compare", lambda: rows)
    share.main(["--out", str(tmp_path)])
    assert (tmp_path / "share_minilm.png").stat().st_size > 10_000
    header = [str(column.header) for column in share.table(rows).columns]
    assert header[2:] == names
    assert "0.7700" in capsys.readouterr().out
