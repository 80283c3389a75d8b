"""The example that merges adapters into a real encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from example_modules import example


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "LOKR"])
def test_merging_into_real_weights(kind: str) -> None:
    merging = example("merge_adapters")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    row = merging.merge(kind, rank=4, device="cpu")
    torch.set_num_threads(threads)
    assert row.layers == 36
    assert row.restored
    assert 0.49 < row.error < 0.51  # one rounding of every sum
    assert row.error_one_by_one > 0.6  # the delta's rounding on top
    assert merging.table([row], "cpu").row_count == 1


def test_it_draws_a_bar_for_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    merging = example("merge_adapters")
    rows = {
        "LORA": merging.Row("LORA", 36, 0.2, 0.1, 0.5, 7.5, True),
        "LOHA": merging.Row("LOHA", 36, 0.3, 0.4, 0.25, 9.0, True),
        "LOKR": merging.Row("LOKR", 36, 0.6, 0.5, 0.5, 3.0, False),
    }
    left, right = merging.plot([*rows.values()], "cpu", tmp_path / "merge.svg").axes
    assert "<svg" in (tmp_path / "merge.svg").read_text()[:1000]
    times, errors = ([[bar.get_height() for bar in group] for group in axes.containers]
                     for axes in (left, right))  # fmt: skip
    assert times == [[200, 300, 600], [100, 400, 500]]
    assert errors == [[0.5, 0.25, 0.5], [7.5, 9, 3]]
    assert [text.get_text() for text in left.get_xticklabels()] == list(rows)
    for tick, *group in zip(left.get_xticks(), *left.containers, strict=True):  # side by side
        first, second = group
        assert first.get_x() + first.get_width() == pytest.approx(tick) == second.get_x()
    monkeypatch.setattr(merging, "merge", lambda kind, rank, device: rows[kind])
    merging.main(["--device", "cpu", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/merge_adapters.png").stat().st_size > 10_000
    assert "7.500" in capsys.readouterr().out
