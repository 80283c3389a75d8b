"""Adapter files of PEFT, LyCORIS, kohya's scripts and FLoRA: what they add to a model."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import wlib
from adapters_written import (
    ALPHA,
    CORE,
    KOHYA_LORA,
    KRON,
    MATRICES,
    PEFT_LORA,
    RANK,
    SHAPES,
    Case,
    Net,
    cases,
    flora,
    locon_tucker,
    loha,
    loha_tucker,
    lokr,
    lora,
    lora_embedding,
    save_file,
    save_peft,
)
from wlib.formats import Adapter, LoraDelta, load_adapter, merge_adapter

FORMS: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "lora": ("LORA", lambda: [*cases(PEFT_LORA, *MATRICES, "conv", "line"),
                              *cases(lora_embedding, "embedding")]),
    "loha": ("LOHA", lambda: [*cases(loha, *MATRICES), *cases(loha_tucker, "conv")]),
    "lokr": ("LOKR", lambda: [
        *cases(KRON, *MATRICES),
        *cases(CORE, "conv"),
        *cases(functools.partial(lokr, first="whole", second="product"), "line")]),
    "lokr whole": ("LOKR", lambda: [
        *cases(functools.partial(lokr, first="product", second="whole"), "block.up", "line"),
        *cases(functools.partial(lokr, first="whole", second="core"), "conv")]),
    "locon": ("", lambda: [*cases(KOHYA_LORA, *MATRICES, "line"), *cases(locon_tucker, "conv")]),
    "loha and lokr": ("", lambda: [
        *cases(loha, "block.up", "conv"),
        *cases(functools.partial(lokr, first="whole", second="product"), "block.down")]),
}  # fmt: skip


def assert_added(
    model: nn.Module, base: nn.Module, made: list[Case], scales: dict[str, float]
) -> None:
    """The weights are those of the base plus scale * delta, with one rounding of float32."""
    for case in made:
        before, after = (m.get_submodule(case.module).weight for m in (base, model))
        exact = before.double() + scales[case.module] * case.delta
        # Operands are integers, and so are the sums before the scale: what is rounded are the
        # scale, its product and the sum.
        bound = 2.0**-23 * (before.abs() + 2 * (exact - before).abs())
        assert ((after - exact).abs() <= bound).all(), case.module
    changed = {f"{case.module}.weight" for case in made}
    for name, parameter in model.named_parameters():
        if name not in changed:
            assert torch.equal(parameter, base.get_parameter(name))


@pytest.mark.parametrize("name", [name for name, (kind, _) in FORMS.items() if kind])
def test_peft(name: str, tmp_path: Path) -> None:
    """scaling = alpha / r of the config, also for LoKr with whole factors."""
    kind, make = FORMS[name]
    made, base = make(), Net()
    adapter = load_adapter(save_peft(tmp_path, made, kind))
    assert adapter.format == "peft"
    assert adapter.deltas.keys() == {case.module for case in made}
    model = copy.deepcopy(base)
    merge_adapter(model, adapter, 0.5)
    assert_added(model, base, made, {case.module: 0.5 * ALPHA / RANK for case in made})


def test_lokr_of_two_whole_factors_has_a_scale_in_peft_and_none_in_lycoris(tmp_path: Path) -> None:
    made, base = cases(functools.partial(lokr, first="whole", second="whole"), "conv"), Net()
    for folder, scale in ((save_peft(tmp_path / "peft", made, "LOKR"), ALPHA / RANK),
                          (save_file(tmp_path / "a.safetensors", made, ALPHA), 1.0)):  # fmt: skip
        model = copy.deepcopy(base)
        merge_adapter(model, load_adapter(folder))
        assert_added(model, base, made, {"conv": scale})


def test_peft_patterns_and_rank_stabilised_scales(tmp_path: Path) -> None:
    """get_pattern_key: the first pattern that fits the end of the name; alpha / sqrt(r)."""
    made = [
        PEFT_LORA("block.up", SHAPES["block.up"], r=2),
        PEFT_LORA("block.down", SHAPES["block.down"]),
        PEFT_LORA("conv", SHAPES["conv"], r=3),
    ]
    config = {
        "use_rslora": True,
        "rank_pattern": {"up": 2, "^co.*": 3},
        "alpha_pattern": {"p": 1.0, r"block\.(down|up)": 5, "down": 7},
    }
    base = Net()
    model = copy.deepcopy(base)
    merge_adapter(model, load_adapter(save_peft(tmp_path, made, "LORA", **config)))
    scales = {"block.up": 5 / math.sqrt(2), "block.down": 5 / 2, "conv": ALPHA / math.sqrt(3)}
    assert_added(model, base, made, scales)


class Conv1D(nn.Module):
    """As in transformers: the weight is [in, out]."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, n))


def test_peft_fan_in_fan_out(tmp_path: Path) -> None:
    (made,) = cases(functools.partial(lora, names=("lora_A.weight", "lora_B.weight")), "block.up")
    adapter = load_adapter(save_peft(tmp_path, [made], "LORA", fan_in_fan_out=True))
    base = nn.ModuleDict({"block": nn.ModuleDict({"up": Conv1D(24, 16)})})
    model = copy.deepcopy(base)
    merge_adapter(model, adapter)
    assert_added(model, base, [Case("block.up", {}, made.delta.T)], {"block.up": ALPHA / RANK})
    with pytest.raises(ValueError, match=r"got an nn\.Linear \(argument 'block\.up'\)"):
        merge_adapter(Net(), adapter)


@pytest.mark.parametrize("alpha", [ALPHA, 3, None, 0.0])
@pytest.mark.parametrize("name", ["locon", "loha", "lokr", "lokr whole", "loha and lokr"])
def test_lycoris(name: str, alpha: float | None, tmp_path: Path) -> None:
    """scale = alpha / lora_dim, lora_dim if there is no alpha; a folder with one file."""
    made, base = FORMS[name][1](), Net()
    save_file(tmp_path / "a.safetensors", made, alpha)
    adapter = load_adapter(tmp_path)
    assert adapter.format == "lycoris"
    model = copy.deepcopy(base)
    merge_adapter(model, adapter, -2.0)
    assert_added(model, base, made, {case.module: -2 * (alpha or RANK) / RANK for case in made})


def test_kohya_names_and_prefixes(tmp_path: Path) -> None:
    """Dots became underscores, one file may serve several models."""
    made, base = cases(KOHYA_LORA, *MATRICES), Net()
    other = [Case("layer", case.tensors, case.delta) for case in cases(KOHYA_LORA, "line")]
    named = [
        *(Case("lora_unet_" + c.module.replace(".", "_"), c.tensors, c.delta) for c in made),
        *(Case("lora_te_" + c.module, c.tensors, c.delta) for c in other),
    ]
    path = save_file(tmp_path / "a.safetensors", named, ALPHA)
    adapter = load_adapter(path, "lora_unet_")
    assert set(adapter.deltas) == {"block_up", "block_down"}
    model = copy.deepcopy(base)
    merged = merge_adapter(model, adapter)
    assert merged.names == tuple(adapter.deltas)
    assert_added(model, base, made, {case.module: ALPHA / RANK for case in made})
    with pytest.raises(ValueError, match=r"one module lora_te_layer .*got none"):
        merge_adapter(Net(), load_adapter(path, ""))


def test_flora(tmp_path: Path) -> None:
    """The scale is not in the file; grouped convolutions have in / groups."""
    made, base = cases(flora, *MATRICES, "conv", "line"), Net()
    adapter = load_adapter(save_file(tmp_path / "a.safetensors", made))
    assert adapter.format == "flora"
    model = copy.deepcopy(base)
    merge_adapter(model, adapter, 4.0)
    assert_added(model, base, made, dict.fromkeys(SHAPES, 4.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Integers: the float32 sum is exact, and the weight is its rounding."""
    made = cases(loha, *MATRICES, "conv")
    halves = [Case(c.module, {n: t.to(dtype) for n, t in c.tensors.items()}, c.delta) for c in made]
    adapter = load_adapter(save_file(tmp_path / "a.safetensors", halves))
    model = Net()
    for parameter in model.parameters():
        parameter.data = torch.randint(-40, 40, parameter.shape).float()
    model = model.to(dtype)
    base = copy.deepcopy(model)
    merge_adapter(model, adapter)
    for case in made:
        before, after = (m.get_submodule(case.module).weight for m in (base, model))
        assert torch.equal(after, (before.double() + case.delta).to(dtype))


def test_all_layers_are_one_call_of_the_op(tmp_path: Path) -> None:
    made = FORMS["loha and lokr"][1]() + cases(locon_tucker, "line")
    adapter = load_adapter(save_file(tmp_path / "a.safetensors", made, ALPHA))
    with torch.profiler.profile() as profile:
        merge_adapter(Net(), adapter)
    calls = [event for event in profile.events() if event.name.startswith("wlib::rebuild")]
    assert len(calls) == 1


def test_unmerge_brings_back_every_bit_and_object(tmp_path: Path) -> None:
    made = FORMS["lora"][1]()
    adapter = load_adapter(save_peft(tmp_path, made, "LORA"))
    model = Net().bfloat16()
    model.tied = nn.Linear(16, 10, bias=False)
    model.tied.weight = model.embedding.weight
    model.conv.weight.requires_grad_(False)
    before = dict(model.named_parameters(remove_duplicate=False))
    bits = {name: parameter.clone() for name, parameter in before.items()}
    merged = merge_adapter(model, adapter)
    assert model.tied.weight is before["tied.weight"]  # the adapter names the embedding alone
    assert not model.conv.weight.requires_grad
    assert model.line.weight.requires_grad
    first = model.conv.weight
    again = merge_adapter(model, adapter)
    with pytest.raises(ValueError, match=r"expected the weight that was merged, got another"):
        merged.unmerge()
    again.unmerge()
    assert model.conv.weight is first
    merged.unmerge()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameter is before[name]
        assert torch.equal(parameter, bits[name])


def test_in_place_writes_the_same_weights_where_they_are(tmp_path: Path) -> None:
    made = [*FORMS["loha and lokr"][1](), *cases(flora, "line")]
    adapter = load_adapter(save_file(tmp_path / "a.safetensors", made[:-1], ALPHA))
    more = load_adapter(save_file(tmp_path / "b.safetensors", made[-1:]))
    adapter = Adapter("lycoris", {**adapter.deltas, **more.deltas})  # both kinds at once
    model = Net()
    other, parameters = copy.deepcopy(model), list(model.parameters())
    merge_adapter(other, adapter, 2.0)
    merged = merge_adapter(model, adapter, 2.0, in_place=True)
    for mine, theirs, parameter in zip(
        model.parameters(), other.parameters(), parameters, strict=True
    ):
        assert mine is parameter
        assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="expected a merge that kept the weights"):
        merged.unmerge()


def test_lora_with_a_core_is_differentiable() -> None:
    made = locon_tucker("conv", (3, 2, 2))
    leaves = [made.tensors[f"lora_{n}.weight"].double().requires_grad_()
              for n in ("down", "up", "mid")]  # fmt: skip

    def run(*operands: torch.Tensor) -> torch.Tensor:
        return wlib.rebuild.lora(None, operands[0], operands[1], 0.5, operands[2])

    torch.testing.assert_close(run(*leaves), 0.5 * made.delta)
    assert torch.autograd.gradcheck(run, leaves)


def test_deltas_are_typed(tmp_path: Path) -> None:
    made = cases(KOHYA_LORA, "conv")
    adapter = load_adapter(save_file(tmp_path / "a.safetensors", made, ALPHA))
    delta = adapter.deltas["conv"]
    assert isinstance(delta, LoraDelta)
    assert delta.scale == ALPHA / RANK
    assert delta.shape == SHAPES["conv"]
    assert torch.equal(delta.lora_A, made[0].tensors["lora_down.weight"])
