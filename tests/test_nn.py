"""Modules: what they compute, how they move, save and replace."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import wlib
from wlib.nn import Int4Fp8Linear, replace_linear
from wlib.reference import int4fp8 as reference


def layer(bias: bool = True) -> Int4Fp8Linear:
    """A layer with every optional tensor, [256] -> [40]."""
    weight = wlib.Int4Weight(
        codes=torch.randint(0, 256, (40, 128), dtype=torch.uint8),
        group_scale=(torch.randn(40, 4) / 50).bfloat16(),
        zero_point=torch.randn(40, 4),
        channel_scale=torch.rand(40) + 0.5,
    )
    return Int4Fp8Linear.from_weight(weight, torch.randn(40) if bias else None)


def same_layer(a: Int4Fp8Linear, b: Int4Fp8Linear) -> bool:
    """Whether two layers hold the same bytes in different memory and compute the same."""
    x = torch.randn(3, a.in_features)
    return (
        repr(a) == repr(b)
        and a.packed_weight.data_ptr() != b.packed_weight.data_ptr()
        and torch.equal(a.packed_weight, b.packed_weight)
        and torch.equal(a(x), b(x))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,), (20,)])
def test_forward_is_the_reference_of_its_own_weight(
    dtype: torch.dtype, bias: bool, lead: tuple[int, ...]
) -> None:
    module = layer(bias)
    x = torch.randn(*lead, 256, dtype=dtype)
    y = module(x)
    assert y.dtype == dtype
    assert y.shape == (*lead, 40)
    xq, xs = wlib.fp8_quantize(x.view(-1, 256))
    exact = reference.int4fp8_gemm(xq, module.packed.unpack(), xs, module.bias)
    error = (y.view(-1, 40).double() - exact.y).abs()
    assert (error <= exact.bound(256, dtype)).all()


def test_forward_takes_strided_input() -> None:
    module = layer()
    x = torch.randn(256, 5).T
    assert torch.equal(module(x), module(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip_search", [False, True])
def test_from_linear_approximates_the_layer(dtype: torch.dtype, clip_search: bool) -> None:
    linear = nn.Linear(512, 96, dtype=dtype).eval()
    module = Int4Fp8Linear.from_linear(linear, clip_search=clip_search)
    expected = wlib.Int4Weight.quantize(linear.weight, clip_search=clip_search)
    assert torch.equal(module.packed_weight, expected.pack().data)
    assert torch.equal(module.bias, linear.bias.float())
    assert not module.training
    x = torch.randn(64, 512, dtype=dtype)
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    error = (module(x).double() - exact).norm() / exact.norm()
    assert 0.05 < error < 0.12  # uniform weights: a step of absmax/8 is 7 % of their RMS


def test_from_packed_shares_the_weight_and_copies_the_bias() -> None:
    packed, bias = layer().packed, torch.zeros(40)
    module = Int4Fp8Linear.from_packed(packed, bias)
    assert module.packed_weight.data_ptr() == packed.data.data_ptr()
    bias += 1
    assert not module.bias.any()


def test_a_new_layer_is_zero() -> None:
    assert not Int4Fp8Linear(256, 40)(torch.randn(3, 256)).any()
    assert not Int4Fp8Linear(256, 40).packed.unpack().dequantize().any()


def test_repr_names_the_format() -> None:
    assert repr(layer(bias=False)) == (
        "Int4Fp8Linear(in_features=256, out_features=40, bias=False, group_size=64, "
        "has_zero_point=True, has_channel_scale=True)"
    )
    assert repr(Int4Fp8Linear(128, 8)) == (
        "Int4Fp8Linear(in_features=128, out_features=8, bias=True, group_size=128)"
    )


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_through_safetensors(bias: bool, tmp_path: Path) -> None:
    module = layer(bias)
    empty = Int4Fp8Linear(256, 40, bias, 64, has_zero_point=True, has_channel_scale=True)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "a.safetensors")
    empty.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    assert same_layer(module, empty)
    safetensors.torch.save_model(module, tmp_path / "b.safetensors")
    again = Int4Fp8Linear(256, 40, bias, 64, has_zero_point=True, has_channel_scale=True)
    safetensors.torch.load_model(again, tmp_path / "b.safetensors")
    assert same_layer(module, again)


def test_state_dict_onto_meta_and_through_torch_save() -> None:
    module, file = layer(), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    empty = Int4Fp8Linear(
        256, 40, group_size=64, has_zero_point=True, has_channel_scale=True, device="meta"
    )
    empty.load_state_dict(state, assign=True)
    assert same_layer(module, empty)


def test_deepcopy_and_torch_save_of_the_module() -> None:
    module, file = layer(), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert same_layer(module, torch.load(file, weights_only=False))
    assert same_layer(module, copy.deepcopy(module))


@pytest.mark.parametrize(
    "cast",
    [
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.double,
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        lambda module: nn.Sequential(module).half()[0],
    ],
)
def test_casts_leave_the_buffers_alone(cast: Callable[[nn.Module], nn.Module]) -> None:
    module = layer()
    before = copy.deepcopy(module)
    after = cast(module)
    assert after is module
    assert after.packed_weight.dtype == torch.uint8
    assert after.bias.dtype == torch.float32
    assert torch.equal(after.bias, before.bias)
    assert same_layer(before, after)


def test_to_meta_and_to_empty_move_both_buffers() -> None:
    module = layer().to("meta", torch.float16)
    assert module.packed_weight.device.type == module.bias.device.type == "meta"
    assert module.bias.dtype == torch.float32
    module.to_empty(device="cpu")
    assert module.packed_weight.device.type == module.bias.device.type == "cpu"


def test_autocast_gives_the_dtype_a_linear_gives() -> None:
    module, linear, x = layer(), nn.Linear(256, 40), torch.randn(20, 256)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert y.dtype == linear(x).dtype == torch.bfloat16
    assert torch.equal(y, module(x).bfloat16())


def test_compile_with_any_number_of_tokens() -> None:
    module = layer()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    compiled(torch.randn(2, 256, dtype=torch.bfloat16))
    with torch.compiler.set_stance("fail_on_recompile"):
        for m in (17, 70):
            x = torch.randn(m, 256, dtype=torch.bfloat16)
            assert torch.equal(compiled(x), module(x))


def test_export_with_any_number_of_tokens() -> None:
    module = layer()
    exported = torch.export.export(
        module, (torch.randn(4, 256),), dynamic_shapes=({0: torch.export.Dim("m")},)
    )
    for m in (1, 33):
        x = torch.randn(m, 256)
        assert torch.equal(exported.module()(x), module(x))


class Tied(nn.Module):
    """One linear layer under two names, attention whose owner reads the layer's weight, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(2))
        self.shared = self.blocks[0][0]
        self.attention = nn.MultiheadAttention(64, 2)
        self.lm_head = nn.Linear(64, 100)
        self.odd = nn.Linear(50, 2)


def test_replace_linear_replaces_in_place_and_keeps_sharing() -> None:
    model = Tied().eval()
    weights = model.blocks[1][0].weight
    skip = ("lm_head", "odd")
    names = replace_linear(model, Int4Fp8Linear, skip=skip, group_size=64)
    assert names == ["blocks.0.0", "blocks.1.0", "shared"]
    for name in names:
        assert type(model.get_submodule(name)) is Int4Fp8Linear
    assert model.shared is model.blocks[0][0]
    expected = wlib.Int4Weight.quantize(weights, 64).pack().data
    assert torch.equal(model.blocks[1][0].packed_weight, expected)
    assert type(model.lm_head) is type(model.odd) is nn.Linear
    assert isinstance(model.attention.out_proj, nn.Linear)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("skip", "names"),
    [
        (("*",), []),
        (("blocks.*", "odd"), ["shared", "lm_head"]),
        (("0", "odd", "shared"), ["lm_head"]),
        (("head", "odd"), ["blocks.0.0", "blocks.1.0", "shared", "lm_head"]),
    ],
)
def test_skip_matches_names_by_their_last_parts(skip: tuple[str, ...], names: list[str]) -> None:
    assert replace_linear(Tied(), Int4Fp8Linear, skip=skip, group_size=32) == names


def test_replace_linear_changes_nothing_when_a_layer_is_refused() -> None:
    model = Tied()
    with torch.no_grad():
        model.blocks[1][0].weight[3, 4] = torch.nan
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"(?s)blocks\.1\.0: .*NaN or Inf.*\n  odd: .*k=50"):
        replace_linear(model, Int4Fp8Linear, group_size=64)
    assert dict(model.named_modules()) == before
