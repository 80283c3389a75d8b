"""Layers over shared atoms and layers with a folded delta: what they compute, keep and restore."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wlib
from wlib.nn import (
    AtomDictionary,
    AtomLinear,
    DeltaLayer,
    FoldWarning,
    NolaLinear,
    TuckerConv2d,
    TuckerLinear,
    cached_weights,
    merge_atoms,
    share_attention,
)

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"coefficients": "free"},
    {"per_channel": True},
    {"coefficients": "free", "per_channel": True, "residual_rank": 2},
    {"group_size": 4},
)


class Stack(nn.Module):
    """Six residual layers over one dictionary."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.dictionary = AtomDictionary(6, 16, 16, 2, **options)
        self.layers = nn.ModuleList(AtomLinear(self.dictionary, i) for i in range(6))
        if self.dictionary.residual_a is not None:
            nn.init.normal_(self.dictionary.residual_a)

    def forward(self, x: Tensor, cached: bool = True, again: bool = False) -> Tensor:
        if not cached:
            return self.run(x, again)
        with cached_weights(self):
            return self.run(x, again)

    def run(self, x: Tensor, again: bool) -> Tensor:
        for layer in self.layers:
            y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            x = x + torch.tanh(y)
        return x


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("options", KINDS)
def test_weights_and_gradients_are_those_of_the_formula(options: dict[str, Any]) -> None:
    model, x = Stack(**options).double(), torch.randn(3, 16, dtype=torch.float64)
    d = model.dictionary
    coef = d.coefficients()
    wide = coef if coef.dim() == 3 else coef[..., None].expand(-1, -1, 16)
    w = torch.einsum("lso,soi->loi", wide, d.atoms)
    if d.residual_a is not None:
        w = w + d.residual_a @ d.residual_b
    expected = x
    for i, layer in enumerate(model.layers):
        expected = expected + torch.tanh(expected @ w[i].T + layer.bias)
    expected.square().sum().backward()
    right = gradients(model)
    for cached in (True, False):
        y = model(x, cached)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        found = gradients(model)
        assert found.keys() == right.keys() == dict(model.named_parameters()).keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, right[name], msg=name)


@pytest.mark.parametrize(("options", "calls"), [({}, 1), ({"group_size": 4}, 2)])
def test_one_call_for_all_layers_or_per_group(
    options: dict[str, Any], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    op = wlib.nn.atoms.atoms_reconstruct
    monkeypatch.setattr(
        wlib.nn.atoms, "atoms_reconstruct", lambda *a, **k: made.append(1) or op(*a, **k)
    )
    model = Stack(**options)
    model(torch.randn(3, 16))
    assert len(made) == calls
    assert model.dictionary._cache is None
    model(torch.randn(3, 16), cached=False)
    assert len(made) == calls + 6


def test_one_group_is_held_and_any_order_reads_the_same() -> None:
    d = Stack(group_size=4).dictionary
    alone = [d.weight(i) for i in range(6)]
    with torch.no_grad(), cached_weights(d):
        for layer in (0, 3, 5, 1, 4, 2):
            assert torch.equal(d.weight(layer), alone[layer])
            assert list(d._cache) == [layer // 4]


def test_checkpointing_inside_and_around() -> None:
    model, x = Stack(), torch.randn(3, 16)
    model(x).square().sum().backward()
    plain = gradients(model)
    with cached_weights(model):
        model(x, again=True).square().sum().backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, plain[name], msg=name)


@pytest.mark.parametrize("options", KINDS)
def test_compiles_without_a_break(options: dict[str, Any]) -> None:
    model = Stack(**options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        x = torch.randn(rows, 16)
        assert torch.equal(compiled(x), model(x))


def test_fold_merge_copy_and_files_keep_the_outputs(tmp_path: Path) -> None:
    model, x = Stack(per_channel=True), torch.randn(3, 16)
    nn.init.normal_(model.dictionary.channel)
    y = model(x)
    model.dictionary.fold()
    assert {n for n, _ in model.dictionary.named_parameters()} == {"atoms", "coef"}
    assert torch.equal(model(x), y)
    twin = copy.deepcopy(model)
    assert twin.layers[0].dictionary is twin.dictionary is not model.dictionary
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    fresh = Stack(coefficients="free", per_channel=True)
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "m.safetensors"))
    assert torch.equal(fresh(x), y)
    names = merge_atoms(twin)
    assert names == [f"layers.{i}" for i in range(6)]
    assert all(type(layer) is nn.Linear for layer in twin.layers)
    assert torch.equal(twin(x), y)


def test_autocast_casts_masters_on_the_way() -> None:
    model = Stack()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.layers[0].weight.dtype == torch.bfloat16
        assert model(torch.randn(3, 16)).dtype == torch.float32
    exact = model.layers[0].weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.layers[0].weight, exact.bfloat16())


@pytest.mark.parametrize(("d", "layers", "atoms"), [(768, 12, 4), (1024, 24, 8), (1536, 24, 8)])
def test_a_third_of_the_atoms_leaves_a_third_of_the_parameters(
    d: int, layers: int, atoms: int
) -> None:
    """MASA-QKVO: 66.7 % of the parameters of Q, K, V and O removed, coefficients counted."""
    count = 0
    for _ in "QKVO":
        one = AtomDictionary(layers, d, d, atoms, coefficients="free", device="meta")
        count += sum(p.numel() for p in one.parameters())
    cut = 1 - count / (4 * layers * d * d)
    print(f"d={d} L={layers} S={atoms}: {4 * layers * d * d:,} -> {count:,}, {cut:.4%} removed")
    assert round(100 * cut, 1) == 66.7


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"num_atoms": 0}, "num_atoms"),
        ({"group_size": 0}, "group_size"),
        ({"residual_rank": -1}, "residual_rank"),
        ({"coefficients": "tied"}, "coefficients"),
    ],
)
def test_dictionaries_refuse_by_name(options: dict[str, Any], argument: str) -> None:
    sizes = {"num_layers": 3, "out_features": 4, "in_features": 4, "num_atoms": 2}
    with pytest.raises(ValueError, match=rf"argument '{argument}'"):
        AtomDictionary(**{**sizes, **options})
    with pytest.raises(ValueError, match="argument 'layer'"):
        AtomLinear(AtomDictionary(**sizes), 3)


def deltas(dtype: torch.dtype, dropout: float = 0.0) -> list[tuple[DeltaLayer, Tensor]]:
    """A layer of each kind whose delta is not zero, and an input."""
    conv = nn.Conv2d(16, 24, 3, groups=4, padding=1, padding_mode="reflect").to(dtype)
    linear = [nn.Linear(48, 40).to(dtype) for _ in range(2)]
    made = [
        TuckerConv2d(conv, (8, 4, 2, 2), 0.5, dropout),
        TuckerLinear(linear[0], (8, 6), 0.5, dropout),
        NolaLinear(linear[1], 32, 4, seed=7, scale=0.5, dropout=dropout),
    ]
    for layer in made:
        nn.init.normal_(layer.beta if isinstance(layer, NolaLinear) else layer.core)
    x = torch.randn(5, 48, dtype=dtype)
    return list(zip(made, (torch.randn(2, 16, 6, 7, dtype=dtype), x, x), strict=True))


def test_deltas_start_at_zero() -> None:
    linear, conv = nn.Linear(48, 40), nn.Conv2d(16, 24, 3, groups=4)
    for layer in (TuckerLinear(linear), TuckerConv2d(conv), NolaLinear(linear)):
        assert torch.equal(layer.fold(), layer.base.weight)
        assert not layer.base.weight.requires_grad


def test_tucker_convolution_is_the_formula() -> None:
    layer, x = deltas(torch.float32)[0]
    core, factors = layer.core.double(), [f.double() for f in layer.factors]
    delta = torch.einsum("abcd,oa,ib,hc,wd->oihw", core, *factors)
    base = copy.deepcopy(layer.base).double()
    y = base._conv_forward(x.double(), base.weight + 0.5 * delta, base.bias)
    torch.testing.assert_close(layer(x).double(), y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unmerge_keep_every_bit(dtype: torch.dtype) -> None:
    for layer, x in deltas(dtype):
        layer.eval()
        base, y, keys = layer.base.weight.clone(), layer(x), set(layer.state_dict())
        for _ in range(3):
            layer.merge()
            assert layer.is_merged
            assert set(layer.state_dict()) == keys
            assert torch.equal(layer(x), y)
            layer.unmerge()
            assert torch.equal(layer(x), y)
        assert torch.equal(layer.base.weight, base)
        assert torch.equal(layer.folded()(x), y)
        layer.merge().train()
        assert not layer.is_merged
        with pytest.raises(ValueError, match="argument 'self'"):
            layer.merge()


def test_drift_of_a_merge_is_one_rounding() -> None:
    """In ULP of bfloat16; rounding the delta first, as a chain of torch ops does, costs more."""
    for layer, _ in deltas(torch.bfloat16):
        drift = layer.drift()
        print(f"{type(layer).__name__}: {drift:.3f} ULP")
        assert 0.4 < drift <= 1
        layer.eval()
        layer.merged_weight = layer.base.weight + layer.delta().detach().bfloat16()
        assert layer.drift() > drift


def test_dropout_falls_back_loudly_and_only_in_training() -> None:
    for layer, x in deltas(torch.float32, 0.5):
        layer.train()
        with pytest.warns(FoldWarning, match="forbids folding"):
            y = layer(x)
        y.sum().backward()
        layer.eval()
        assert not torch.equal(layer(x), y)
        layer.dropout = 1e-9  # nothing is dropped: the same sum in another order
        layer.train()
        torch.testing.assert_close(layer(x), layer.eval()(x), atol=1e-4, rtol=1e-4)


def test_nola_is_the_sum_over_its_bases() -> None:
    layer, _ = deltas(torch.float32)[2]
    one = torch.ones(1)
    expected = []
    for coef, shape, number in ((layer.alpha, (4, 48), 0), (layer.beta, (40, 4), 1)):
        total = torch.zeros(shape, dtype=torch.float64)
        for i, c in enumerate(coef.tolist()):  # basis i alone, by a coefficient of 1 in its place
            place = torch.cat((torch.zeros(i), one))
            total += c / 32**0.5 * wlib.prng_expand(place, shape, 7, tensor_id=number).double()
        expected.append(total)
    a, b = expected
    delta = layer.delta(torch.float64)
    torch.testing.assert_close(delta, 0.5 * b @ a, atol=1e-5, rtol=1e-5)


def test_nola_expands_once_and_again_when_coefficients_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = deltas(torch.float32)[2]
    calls = []
    expand = layer.expand
    monkeypatch.setattr(layer, "expand", lambda: calls.append(1) or expand())
    layer.eval()
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        assert len(calls) == 1
        layer.beta.mul_(2)
        assert not torch.equal(layer(x), before)
    assert len(calls) == 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.q(x)


class Encoder(nn.Module):
    """Residual layers of which pairs are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        with torch.no_grad():
            for i in (1, 3, 5):
                self.blocks[i].q.weight.copy_(-self.blocks[i - 1].q.weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_sharing_what_repeats_changes_nothing() -> None:
    model, x = Encoder(), torch.randn(7, 12)
    y = model(x)
    report = share_attention(model, ["blocks.*.q"], 3)
    torch.testing.assert_close(model(x), y)
    (group,) = report.groups
    assert group.kept_energy == pytest.approx(1)
    assert max(group.weight_errors) < 1e-10
    assert group.bytes_after == 4 * (3 * 144 + 6 * 3) < group.bytes_before == 4 * 6 * 144
    assert "blocks.5.q" in str(report)
    merge_atoms(model)
    torch.testing.assert_close(model(x), y)


def test_a_whitened_residual_is_better_where_it_counts() -> None:
    x = torch.randn(400, 12) * torch.logspace(0, -2, 12)
    errors = {}
    for rank, seen in ((0, [x]), (3, [x]), (3, None)):
        torch.manual_seed(1)
        model = Encoder()
        original = copy.deepcopy(model)
        report = share_attention(model, ["blocks.*.q"], 1, calibration=seen, residual_rank=rank)
        # The same inputs for all: those of the original's first layer.
        linear, shared = original.blocks[0].q, model.blocks[0].q
        lost = (linear(x) - shared(x)).square().sum()
        errors[rank, seen is None] = (lost / (x @ linear.weight.T).square().sum()).item()
        if seen is not None:
            found = report.groups[0].output_errors[0]
            assert found == pytest.approx(errors[rank, False], rel=1e-3)
    assert errors[3, False] < 0.7 * errors[3, True] < errors[0, False]


def test_no_product_of_that_rank_loses_less_of_the_outputs() -> None:
    """Eckart-Young in the metric of correlated inputs of very different sizes."""
    rest = torch.randn(10, 12, dtype=torch.float64)
    x = torch.randn(200, 12).double() @ torch.randn(12, 12).double() * torch.logspace(1, -1, 12)
    moment = x.T @ x / len(x)
    for rank in (1, 3, 12):
        a, b = wlib.nn.share._low_rank(rest, rank, moment)
        lost = (x @ (rest - a @ b).T).square().sum()
        best = torch.linalg.svdvals(x @ rest.T)[rank:].square().sum()
        total = (x @ rest.T).square().sum()
        torch.testing.assert_close(lost / total, best / total, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("head", [None, nn.Linear(12, 30)])
def test_groups_are_cut_where_outputs_change_most(head: nn.Module | None) -> None:
    model = Encoder()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.q.weight.mul_(5 if i in (2, 5) else 1e-3)
            block.q.bias.zero_()
    batches = [torch.randn(9, 12)]
    report = share_attention(
        model, ["blocks.*.q"], 1, num_groups=3, blocks="blocks.?", head=head, calibration=batches
    )
    assert [len(group.names) for group in report.groups] == [2, 3, 1]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"projections": ["blocks.*.k"]}, "projections"),
        ({"groups": [[0, 1, 2], [2, 3, 4, 5]]}, "groups"),
        ({"num_atoms": 0}, "num_atoms"),
        ({"num_atoms": 1.5}, "num_atoms"),
        ({"num_groups": 2}, "blocks"),
        ({"num_groups": 2, "blocks": "blocks.*"}, "calibration"),
        ({"residual_rank": -1}, "residual_rank"),
    ],
)
def test_sharing_refuses_by_name(options: dict[str, Any], argument: str) -> None:
    model = Encoder()
    with pytest.raises(ValueError, match=rf"argument '{argument}'"):
        share_attention(model, **{"projections": ["blocks.*.q"], "num_atoms": 2, **options})
    assert type(model.blocks[0].q) is nn.Linear
