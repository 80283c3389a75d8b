"""The example on real weights: its numbers, and that its encoder embeds by meaning."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from example_modules import example


@pytest.fixture(scope="module")
def minilm() -> ModuleType:
    return example("minilm")


@pytest.fixture(scope="module")
def report(minilm: ModuleType) -> dict[str, Any]:
    # Many small steps: on a busy machine threads that wait for each other cost minutes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = minilm.compare("cpu", progress=False)
    torch.set_num_threads(threads)
    return found


def test_embeddings_stay_close(report: dict[str, Any]) -> None:
    assert report["sentences"] >= 64
    assert report["linear_layers"] == 36
    models = report["models"]
    assert models["float32"]["cosine_min"] == pytest.approx(1)
    assert models["float32"]["neighbour_agreement"] == 1
    for name, least, worst in (
        ("nearest", 0.95, 0.92),
        ("clip search", 0.955, 0.93),
        ("calibrated", 0.985, 0.965),
    ):
        assert least <= models[name]["cosine_mean"] < 0.999
        assert worst <= models[name]["cosine_min"] < models[name]["cosine_mean"]
        assert 0.6 <= models[name]["neighbour_agreement"] <= 1


def test_every_recipe_improves_on_the_one_before(report: dict[str, Any]) -> None:
    for measure in ("cosine_mean", "cosine_min"):
        values = [report["models"][name][measure] for name in ("nearest", "clip search")]
        assert values == sorted(values)
        assert report["models"]["calibrated"][measure] > values[1] + 0.02


def test_calibration_and_evaluation_share_no_sentence(minilm: ModuleType) -> None:
    calibration = minilm.CALIBRATION.read_text().splitlines()
    assert len(set(calibration)) == len(calibration) >= 200
    assert not set(calibration) & set(minilm.SENTENCES.read_text().splitlines())


def test_weights_shrink_as_the_format_says(report: dict[str, Any]) -> None:
    # 6 layers of four 384 x 384, one 1536 x 384 and one 384 x 1536; tiles of 64 x 128 take
    # 4096 + 128 bytes, row blocks of 64 another 256.
    assert report["weight_bytes_before"] == 6 * (4 * 384 * 384 + 2 * 384 * 1536) * 4
    tiles = 6 * (4 * 6 * 3 + 24 * 3 + 6 * 12)
    blocks = 6 * (4 * 6 + 24 + 6)
    assert report["weight_bytes_after"] == tiles * 4224 + blocks * 256


def test_layer_errors_are_those_of_int4(report: dict[str, Any]) -> None:
    # Gaussian weights would give 19.5 dB; heavier tails widen the step.
    layers = report["layers"]
    ratios = [layer["weight_sqnr"] for layer in layers["nearest"].values()]
    assert len(ratios) == 36
    assert 16.5 < min(ratios) <= max(ratios) < 20
    for name, layer in layers["clip search"].items():
        assert layer["weight_mse"] < layers["nearest"][name]["weight_mse"]
    # Error feedback trades the weight's error for the output's.
    for name, layer in layers["calibrated"].items():
        assert layer["weight_sqnr"] < layers["clip search"][name]["weight_sqnr"]
        assert layer["output_sqnr"] > layer["weight_sqnr"] + 3


def test_attention_over_int4_keys_and_values(report: dict[str, Any]) -> None:
    """Layer by layer, on real keys: what the formats cost, and that the CPU adds nothing to it."""
    errors = report["attention"]
    assert len(errors["plain"]) == len(errors["smoothed"]) == 6
    for plain, smoothed in zip(errors["plain"], errors["smoothed"], strict=True):
        for error in (plain, smoothed):
            # Seen: 0.085 to 0.132, cosines of 0.9914 to 0.9964. A step of absmax / 7, absmax being
            # 2.4 sigma of 32 Gaussian channels, leaves 0.1 sigma in the values alone.
            assert 0.05 < error["rmse"] < 0.2
            assert 0.98 < error["cosine"] < 0.999
            # Seen: 2e-7. (64 + 8) roundings of a score that is itself a few units, twice.
            assert error["arithmetic_rmse"] < 2 * 72 * 2.0**-24 * 4
        # The means of these keys are within 2.6 standard deviations, and the values, which it does
        # not touch, make half of the error and more: smoothing neither helps nor harms.
        assert 0.9 < smoothed["rmse"] / plain["rmse"] < 1.1


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
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(minilm, "compare", lambda device, progress: report)
    out = ["--out", str(tmp_path)]
    minilm.main(["--device", "cpu", "--json", *out])
    assert json.loads(capsys.readouterr().out) == report
    minilm.main(["--device", "cpu", *out])
    assert (tmp_path / "minilm.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    for model in report["models"].values():
        assert f"{model['cosine_mean']:.4f}" in text
    assert f"{report['weight_bytes_after']:,}" in text
    assert f"{report['layers']['nearest']['blocks.5.down']['weight_sqnr']:.1f}" in text
    assert f"{report['layers']['calibrated']['blocks.5.down']['output_sqnr']:.1f}" in text
    assert f"{report['attention']['smoothed'][5]['rmse']:.1%}" in text


def test_it_draws_bytes_and_cosines_of_every_model(minilm: ModuleType, tmp_path: Path) -> None:
    models = {"float32": (1.0, 1.0), "nearest": (0.95, 0.93), "clip search": (0.96, 0.94)}
    report = {
        "device": "cpu",
        "sentences": 100,
        "linear_layers": 36,
        "weight_bytes_before": 42_000_000,
        "weight_bytes_after": 5_500_000,
        "models": {n: {"cosine_mean": a, "cosine_min": b} for n, (a, b) in models.items()},
    }
    left, right = minilm.plot(report, tmp_path / "minilm.svg").axes
    assert "<svg" in (tmp_path / "minilm.svg").read_text()[:1000]
    (sizes,) = ([bar.get_height() for bar in group] for group in left.containers)
    assert sizes == [42, 5.5, 5.5]
    mean, worst = ([bar.get_height() for bar in group] for group in right.containers)
    assert mean == pytest.approx([0, 0.05, 0.04])
    assert worst == pytest.approx([0, 0.07, 0.06])
    for axes in (left, right):
        assert [text.get_text() for text in axes.get_xticklabels()] == list(models)
