"""The example on real weights: its numbers, and that its encoder embeds by meaning."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.progress import Progress

EXAMPLE = Path(__file__).parents[1] / "examples" / "minilm.py"


@pytest.fixture(scope="module")
def minilm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minilm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(minilm: ModuleType) -> dict[str, Any]:
    return minilm.compare("cpu", False, Progress(disable=True))


def test_embeddings_stay_close(report: dict[str, Any]) -> None:
    assert report["sentences"] >= 64
    assert report["linear_layers"] == 36
    assert 0.95 <= report["cosine_mean"] < 0.999
    assert 0.90 <= report["cosine_min"] < report["cosine_mean"]
    assert 0.6 <= report["neighbour_agreement"] <= 1


def test_weights_shrink_as_the_format_says(report: dict[str, Any]) -> None:
    # 6 layers of four 384 x 384, one 1536 x 384 and one 384 x 1536; tiles of 64 x 128 take
    # 4096 + 128 bytes, row blocks of 64 another 256.
    assert report["weight_bytes_before"] == 6 * (4 * 384 * 384 + 2 * 384 * 1536) * 4
    tiles = 6 * (4 * 6 * 3 + 24 * 3 + 6 * 12)
    blocks = 6 * (4 * 6 + 24 + 6)
    assert report["weight_bytes_after"] == tiles * 4224 + blocks * 256


def test_weight_errors_are_those_of_int4(report: dict[str, Any]) -> None:
    # Gaussian weights would give 0.106; heavier tails widen the step.
    errors = report["weight_error"].values()
    assert len(errors) == 36
    assert 0.10 < min(errors) <= max(errors) < 0.15


def test_clip_search_is_better(minilm: ModuleType, report: dict[str, Any]) -> None:
    searched = minilm.compare("cpu", True, Progress(disable=True))
    assert searched["cosine_mean"] > report["cosine_mean"]
    for name, error in searched["weight_error"].items():
        assert error < report["weight_error"][name]


def test_the_encoder_embeds_by_meaning(minilm: ModuleType) -> None:
    model, tokenizer = minilm.load("cpu")
    sentences = [
        "A man is playing a guitar.",
        "Someone plays music on a guitar.",
        "The stock market fell by three percent.",
        "Share prices dropped three percent.",
        "My cat likes to sleep in the sun.",
    ]
    with torch.no_grad():
        together = minilm.embed(model, minilm.batches(tokenizer, sentences, "cpu"))
        alone = torch.cat(
            [minilm.embed(model, minilm.batches(tokenizer, [s], "cpu")) for s in sentences]
        )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # padding changes nothing
    cosine = together @ together.T
    torch.testing.assert_close(cosine.diagonal(), torch.ones(5).double())
    assert cosine[0, 1] > 0.7
    assert cosine[2, 3] > 0.7
    unrelated = cosine.clone()
    for pair in ([0, 1], [2, 3]):
        unrelated[pair, pair[::-1]] = 0
    assert unrelated.fill_diagonal_(0).max() < 0.3


def test_it_prints_json_and_tables(
    minilm: ModuleType,
    report: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minilm, "compare", lambda device, clip_search, progress: report)
    minilm.main(["--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out) == report
    minilm.main(["--device", "cpu"])
    text = capsys.readouterr().out
    assert f"{report['cosine_mean']:.4f}" in text
    assert f"{report['weight_bytes_after']:,}" in text
    assert f"{report['weight_error']['blocks.5.down']:.4f}" in text
