"""Models filled from INT4 checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wlib
from test_formats_convert import write
from wlib.formats import load_model
from wlib.nn import Int4Fp8Linear


class Model(nn.Module):
    """An embedding tied to the head, two blocks of linear layers, a norm and a buffer."""

    def __init__(self, n: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, n, bias=i == 0) for i in range(2))
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 50, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x) + self.steps.sum())


def checkpoint(model: Model) -> dict[str, Tensor]:
    """The model with quantised blocks, in wlib's format; the head is stored as the embedding."""
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("blocks") and name != "lm_head.weight"
    }
    for i, block in enumerate(model.blocks):
        weight = wlib.Int4Weight.quantize(block.weight, 64)
        tensors |= {
            f"blocks.{i}.codes": weight.codes,
            f"blocks.{i}.group_scale": weight.group_scale,
        }
    tensors["blocks.0.bias"] = model.blocks[0].bias.detach().clone()
    return tensors


@pytest.fixture
def trained() -> Model:
    torch.manual_seed(0)
    model = Model()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn_like(tensor))
    return model


def test_a_model_computes_what_the_checkpoint_says(trained: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "in", checkpoint(trained), shards=2)
    model = Model().eval()
    assert load_model(model, source) == ["blocks.0", "blocks.1"]
    expected = trained
    for i, block in enumerate(trained.blocks):
        expected.blocks[i] = Int4Fp8Linear.from_linear(block, 64)
    tokens = torch.arange(50)
    assert torch.equal(model(tokens), expected(tokens))
    assert model.lm_head.weight is model.embed.weight
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, "a tensor norm.weight, as the model has"),
        ({"embed.weight": None}, "a tensor embed.weight"),
        ({"norm.scale": torch.ones(64)}, r"a name the model has.*norm\.scale"),
        ({"norm.weight": torch.ones(63)}, r"\[64\], got \[63\]"),
        ({"blocks.2.codes": torch.ones(64, 32).byte()}, r"a name the model has.*blocks\.2"),
        ({"blocks.codes": torch.ones(64, 32).byte()}, "an nn.Linear in the model, got ModuleList"),
    ],
)
def test_names_and_shapes_are_compared_before_anything_changes(
    trained: Model, changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in (checkpoint(trained) | changes).items() if v is not None}
    source, model = write(tmp_path / "in", tensors), Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_model(model, source)
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("n", "bias"), [(32, True), (64, False)])
def test_layers_of_another_shape_are_refused(
    trained: Model, n: int, bias: bool, tmp_path: Path
) -> None:
    tensors = checkpoint(trained)
    if not bias:
        del tensors["blocks.0.bias"]
    with pytest.raises(ValueError, match=r"expected the shape of Linear.*argument 'blocks\.0'"):
        load_model(Model(n), write(tmp_path / "in", tensors))
