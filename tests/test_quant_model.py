"""Quantising a model: order, folding, reports, refusals."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wlib
from test_quant_rope import rotate
from wlib.nn import Int4Fp8Linear
from wlib.quant import (
    Fold,
    Recipe,
    quantize_model,
    quantize_weight,
)
from wlib.quant.calibration import layer_inputs, stages
from wlib.quant.channels import LLAMA_FOLDS, scale_channels
from wlib.quant.moments import Moments

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER = 128, 4, 2, 32, 256
GPTQ = Recipe(rounding="gptq")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim = HEAD_DIM
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, HEAD_DIM)) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = (t.transpose(-2, -3) for t in (rotate(q), rotate(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(-2, -3).flatten(-2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Two layers of a Llama-type decoder on embeddings [B, T, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.unused = nn.Linear(HIDDEN, 64)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder()
    with torch.no_grad():  # channels as unequal as trained ones
        for parameter in decoder.parameters():
            parameter.mul_((torch.randn(parameter.shape[-1]) / 2).exp())
    return decoder.eval()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(HIDDEN, HIDDEN, generator=generator)
    return [torch.randn(8, 32, HIDDEN, generator=generator) @ mix for _ in range(6)]


def relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def output_error(model: nn.Module, recipe: Recipe, batches: list[Tensor]) -> float:
    """Of a quantised copy, on inputs it was not calibrated with."""
    small = copy.deepcopy(model)
    quantize_model(small, recipe, batches[:-1])
    with torch.no_grad():
        x = batches[-1]
        return relative_error(small(x) - x, model(x) - x)


def test_layers_run_in_stages_of_one_input(model: Decoder, batches: list[Tensor]) -> None:
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert stages(model, names[::-1], batches[0]) == [
        [f"layers.{i}.{part}.{layer}_proj" for layer in group]
        for i in range(2)
        for part, group in (
            ("self_attn", ["q", "k", "v"]),
            ("self_attn", ["o"]),
            ("mlp", ["gate", "up"]),
            ("mlp", ["down"]),
        )
    ]


def test_a_pass_for_inputs_ends_at_their_layer(model: Decoder, batches: list[Tensor]) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    model.layers[0].mlp.register_forward_pre_hook(fail)
    found = list(layer_inputs(model, "layers.0.self_attn.v_proj", batches))
    for x, batch in zip(found, batches, strict=True):
        assert torch.equal(x, model.layers[0].input_layernorm(batch).view(-1, HIDDEN))


def test_without_calibration_it_is_replace_linear(model: Decoder) -> None:
    other = copy.deepcopy(model)
    report = quantize_model(model, Recipe(scale_rule="absmax/8"))
    names = wlib.nn.replace_linear(other, Int4Fp8Linear)
    assert [layer.name for layer in report] == names
    for name in names:
        mine, theirs = model.get_submodule(name), other.get_submodule(name)
        assert torch.equal(mine.packed_weight, theirs.packed_weight)
        assert (mine.bias is None) == (theirs.bias is None)
        assert mine.bias is None or torch.equal(mine.bias, theirs.bias)


def test_calibration_lowers_the_error_on_other_inputs(
    model: Decoder, batches: list[Tensor]
) -> None:
    nearest = output_error(model, Recipe(scale_rule="absmax/8"), [batches[-1]])
    calibrated = output_error(model, GPTQ, batches)
    assert 0.02 < calibrated < 0.7 * nearest


def test_half_precision_models(model: Decoder, batches: list[Tensor]) -> None:
    half = copy.deepcopy(model).bfloat16()
    recipe = Recipe(rounding="gptq", channel_scaling="awq")
    report = quantize_model(half, recipe, [batch.bfloat16() for batch in batches])
    assert all(layer.output_sqnr > 15 for layer in report if layer.name != "unused")
    x = batches[0]
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        assert relative_error(y.float() - x, model(x) - x) < 0.2


def test_each_layer_sees_inputs_of_the_quantised_ones(
    model: Decoder, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs of `down_proj` come through everything before it in INT4 and FP8."""
    seen = {}
    original = wlib.quant.model._quantize

    def spy(model: nn.Module, name: str, recipe: Recipe, *look: object) -> object:
        seen[name] = look[0] if look else None
        return original(model, name, recipe, *look)

    monkeypatch.setattr(wlib.quant.model, "_quantize", spy)
    quantize_model(model, GPTQ, batches)
    last = "layers.1.mlp.down_proj"
    inputs = []
    model.get_submodule(last).register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    x = torch.cat(inputs).view(-1, INNER)
    xq, scale = wlib.fp8_quantize(x)
    x = xq.double() * scale.double()[:, None]
    torch.testing.assert_close(seen[last].mean, x.mean(dim=0), rtol=1e-4, atol=1e-5)
    expected = x.T @ x / len(x)
    torch.testing.assert_close(seen[last].second(False), expected, rtol=1e-4, atol=1e-5)


def test_biases_take_up_the_mean_error(model: Decoder, batches: list[Tensor]) -> None:
    small = copy.deepcopy(model)
    quantize_model(small, Recipe(), batches)
    name = "layers.0.self_attn.v_proj"
    with torch.no_grad():
        x = model.layers[0].input_layernorm(torch.cat(batches)).view(-1, HIDDEN)
        difference = small.get_submodule(name)(x) - model.get_submodule(name)(x)
        uncorrected = copy.deepcopy(small.get_submodule(name))
        uncorrected.bias = model.get_submodule(name).bias.detach()
        before = uncorrected(x) - model.get_submodule(name)(x)
    # What remains is the mean error of FP8 activations.
    assert difference.mean(dim=0).norm() < 0.5 * before.mean(dim=0).norm()


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_frees_the_weight_from_the_mean(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(HIDDEN, 64, bias=bias))
    x = torch.randn(500, HIDDEN) + 2
    xq, scale = wlib.fp8_quantize(x)
    moments = Moments(HIDDEN, x.device)
    moments.add(xq.float() * scale[:, None])
    expected = quantize_weight(model[0].weight, GPTQ, moments, centred=bias)
    other = quantize_weight(model[0].weight, GPTQ, moments, centred=not bias)
    quantize_model(model, GPTQ, [x])
    assert torch.equal(model[0].packed_weight, expected.pack().data)
    assert not torch.equal(expected.codes, other.codes)


def test_masked_tokens_do_not_count(model: Decoder, batches: list[Tensor]) -> None:
    other = copy.deepcopy(model)
    masked = []
    for x in batches:
        mask = torch.ones(8, 40)
        mask[:, 32:] = 0
        masked.append({"inputs": F.pad(x, (0, 0, 0, 8), value=50.0), "attention_mask": mask})
    quantize_model(model, GPTQ, batches)
    quantize_model(other, GPTQ, masked)
    assert torch.equal(  # the mask is exact in a causal model
        model.layers[0].self_attn.q_proj.packed_weight,
        other.layers[0].self_attn.q_proj.packed_weight,
    )
    assert relative_error(other(batches[0]), model(batches[0])) < 0.02


def test_the_result_does_not_depend_on_random_state(model: Decoder, batches: list[Tensor]) -> None:
    recipe = Recipe(rounding="gptq", channel_scaling="awq")
    results = []
    for seed in (1, 2):
        small = copy.deepcopy(model).train()
        torch.manual_seed(seed)
        quantize_model(small, recipe, batches)
        assert small.training
        assert small.layers[1].mlp.training
        results.append(small.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("scaling", ["absmax", "absmean", "awq"])
def test_channel_scaling_changes_weights_but_not_the_model(
    model: Decoder, batches: list[Tensor], scaling: str
) -> None:
    model = model.double()
    before = copy.deepcopy(model)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    batches = [batch.double() for batch in batches]
    with torch.no_grad():
        scale_channels(model, layers, Recipe(channel_scaling=scaling), LLAMA_FOLDS, batches)
        assert relative_error(model(batches[0]), before(batches[0])) < 1e-6
    changes = [
        relative_error(model.get_submodule(name).weight, before.get_submodule(name).weight)
        for name in layers
    ]
    assert sum(change > 0.1 for change in changes) >= (4 if scaling == "awq" else 14)
    if scaling == "absmax":
        absmax = model.layers[0].mlp.down_proj.weight.abs().amax(dim=0)
        assert absmax.max() / absmax.min() < 1.001


def test_awq_helps_where_few_channels_dominate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 256))
    with torch.no_grad():
        model[0].weight[::32] *= 20
        nn.init.normal_(model[1].weight)  # whose largest values are rarely in those channels
    batches = [torch.randn(500, HIDDEN)]
    sqnr = {}
    for scaling in ("none", "awq"):
        recipe = Recipe(channel_scaling=scaling, scale_rule="absmax/8")
        folds = [Fold("0", ("1",))]
        (layer,) = quantize_model(copy.deepcopy(model), recipe, batches, folds=folds)
        sqnr[scaling] = layer.output_sqnr
    assert sqnr["awq"] > sqnr["none"] + 1.2


def test_folds_of_grouped_queries_need_the_head_dim(model: Decoder) -> None:
    folds = [Fold("self_attn.v_proj", ("self_attn.o_proj",))]
    for layer in model.layers:
        del layer.self_attn.head_dim
    with pytest.raises(ValueError, match=r"expected head_dim to spread 64 outputs .* over 128"):
        quantize_model(model, Recipe(channel_scaling="absmax"), folds=folds)
    folds = [Fold("self_attn.v_proj", ("self_attn.o_proj",), HEAD_DIM)]
    quantize_model(model, Recipe(channel_scaling="absmax"), folds=folds)


class ShiftedNorm(nn.RMSNorm):
    """A norm that multiplies with 1 + weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, 1 + self.weight)


def test_sources_that_do_not_scale_with_their_weight_are_refused(model: Decoder) -> None:
    model.layers[0].input_layernorm = ShiftedNorm(HIDDEN)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"outputs of layers.0.input_layernorm proportional"):
        quantize_model(model, Recipe(channel_scaling="absmax"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_refusals_leave_the_model_alone(model: Decoder, batches: list[Tensor]) -> None:
    before = copy.deepcopy(model)
    for recipe in (GPTQ, Recipe(channel_scaling="awq")):
        with pytest.raises(ValueError, match="expected batches for gptq and awq, got None"):
            quantize_model(model, recipe)
    with pytest.raises(ValueError, match="expected folds that name layers of the model"):
        quantize_model(model, Recipe(channel_scaling="absmax"), folds=[Fold("norm", ("q",))])
    model.odd = nn.Linear(100, 8)
    with pytest.raises(
        ValueError, match=r"name these layers in skip.*\n  odd: expected group_size"
    ):
        quantize_model(model, GPTQ, batches)
    del model.odd
    with torch.no_grad():
        model.unused.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="unused: expected finite weights"):
        quantize_model(model, GPTQ, batches)
    model.unused = copy.deepcopy(before.unused)
    batches[2][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite inputs of layers.0.self_attn.q_proj"):
        quantize_model(model, GPTQ, batches)
    states = before.state_dict(), model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_skip_and_shared_layers(model: Decoder, batches: list[Tensor]) -> None:
    model.layers[1].mlp.up_proj = model.layers[0].mlp.up_proj
    shared = "layers.0.mlp.up_proj"
    assert stages(model, [shared], batches[0]) == [[shared]]
    names = ["layers.0.mlp.gate_proj", shared, "layers.1.mlp.gate_proj"]
    assert stages(model, names, batches[0]) == [names[:2], names[2:]]  # by its first call
    report = quantize_model(model, Recipe(rounding="gptq", skip=("o_proj",)), batches)
    assert len(report.layers) == 2 * 7 + 1 - 2 - 1
    assert type(model.layers[0].self_attn.o_proj) is nn.Linear
    assert isinstance(model.layers[0].mlp.up_proj, Int4Fp8Linear)
    assert model.layers[1].mlp.up_proj is model.layers[0].mlp.up_proj


def test_the_report_holds_what_it_says(
    model: Decoder, batches: list[Tensor], tmp_path: Path
) -> None:
    before = copy.deepcopy(model)
    report = quantize_model(model, GPTQ, batches)
    text = str(report)
    for layer in report:
        w = before.get_submodule(layer.name).weight.detach().double()
        error = model.get_submodule(layer.name).packed.unpack().dequantize().double() - w
        assert (layer.n, layer.k) == w.shape
        assert layer.weight_mse == pytest.approx(float(error.square().mean()), rel=1e-5)
        ratio = 10 * math.log10(w.square().sum() / error.square().sum())
        assert layer.weight_sqnr == pytest.approx(ratio, abs=1e-4)
        assert f"{layer.weight_mse:.3e}" in text
        assert f"{layer.weight_sqnr:.2f} dB" in text
    assert report.layers[-1].name == "unused"
    assert report.layers[-1].output_sqnr is None
    first = report.layers[0]
    with torch.no_grad():
        sample = torch.cat([batch.view(-1, HIDDEN)[:86] for batch in batches])  # 512 or more
        x = before.layers[0].input_layernorm(sample)
        exact = before.get_submodule(first.name)(x)
        error = model.get_submodule(first.name)(x) - exact
    ratio = 10 * math.log10(exact.square().sum() / error.square().sum())
    assert first.output_sqnr == pytest.approx(ratio, abs=1e-4)
    assert f"{first.output_sqnr:.2f} dB" in text
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_progress_is_shown(
    model: Decoder, batches: list[Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    quantize_model(model, GPTQ, batches, progress=True)
    assert "quantising" in capsys.readouterr().out
