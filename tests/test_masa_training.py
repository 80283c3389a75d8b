"""The MASA example, small: its three models learn, at the budget they say, and fold."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from example_modules import example
from wlib.nn import AtomDictionary, AtomLinear, merge_atoms


@pytest.fixture(scope="module")
def masa() -> ModuleType:
    return example("train_masa")


@pytest.mark.parametrize("preset", ["test", "cpu", "cuda"])
def test_budgets(masa: ModuleType, preset: str) -> None:
    """Two thirds of the attention parameters are gone; low rank has as many as the atoms."""
    p = masa.PRESETS[preset]
    with torch.device("meta"):
        count = {arm: masa.attention_parameters(masa.build(p, arm, 0)) for arm in masa.ARMS}
    assert count["dense"] == 4 * p.layers * p.width**2
    assert count["masa"] == count["dense"] // 3 + 4 * p.layers * p.layers // 3
    assert count["low rank"] == count["dense"] // 3


def test_arms_start_from_weights_of_the_same_size(masa: ModuleType) -> None:
    p = masa.PRESETS["test"]
    dense, shared, low = (masa.build(p, arm, 0) for arm in masa.ARMS)
    for name, parameter in dense.named_parameters():
        if "qkv" not in name and "merge" not in name:
            assert torch.equal(parameter, shared.get_parameter(name))
            assert torch.equal(parameter, low.get_parameter(name))
    with torch.no_grad():
        shared_o = shared.dictionaries["o"].weights().std()
    dense_o = torch.stack([block.merge.weight for block in dense.blocks]).std()
    low_o = torch.stack([block.merge.b @ block.merge.a for block in low.blocks]).std()
    for std in (low_o, shared_o):
        assert float((std / dense_o).detach()) == pytest.approx(1, rel=0.2)


def test_training(masa: ModuleType, tmp_path: Path) -> None:
    small = example("small_llama")
    p = masa.PRESETS["test"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models: dict[str, nn.Module] = {}

    def build(arm: str, seed: int) -> nn.Module:
        models[arm] = masa.build(p, arm, seed)
        return models[arm]

    runs = small.run_all(p, masa.ARMS, 1, build, quiet=True)
    dense, shared, _ = runs
    for run in runs:
        assert run.training < run.curve[0] - 1.5
        assert abs(run.validation - dense.validation) < 0.3
    assert len({tuple(run.curve) for run in runs}) == 3
    small.plot(runs, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert small.table(runs).row_count == 3

    # The coefficients moved, and what made them can be dropped: plain layers compute the same.
    model, text = models["masa"], small.corpus()[1]
    fresh = masa.build(p, "masa", 0)
    for kind, dictionary in model.dictionaries.items():
        before = fresh.dictionaries[kind].coefficients()
        assert (dictionary.coefficients() - before).abs().max() > 0.01
        dictionary.fold()
    assert small.held_out(model, p, text) == pytest.approx(shared.validation, abs=1e-6)
    merge_atoms(model)
    assert not any(isinstance(module, AtomLinear) for module in model.modules())
    del model.dictionaries
    assert not any(isinstance(module, AtomDictionary) for module in model.modules())
    plain = small.Llama.forward(model, torch.zeros(1, 4, dtype=torch.long))
    assert plain.shape == (1, 4, 256)
    assert small.held_out(model, p, text) == pytest.approx(shared.validation, abs=2e-3)
    torch.set_num_threads(threads)
