"""What each checkpoint format means, against definitions written out nibble by nibble."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import formats_written as written
import wlib
from wlib.formats import FORMATS, Checkpoint, Int4Layer, convert

LAYER = "model.layers.0.up_proj"
# What each format is usually written with.
SCALE_DTYPES = {
    "gptq": torch.float16,
    "awq": torch.float16,
    "compressed-tensors": torch.bfloat16,
    "fireq": torch.bfloat16,
    "wlib": torch.bfloat16,
}


def save(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None, layer: str = LAYER
) -> Path:
    """A checkpoint of one layer, written by the safetensors package."""
    folder.mkdir(exist_ok=True)
    named = {f"{layer}.{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(named, folder / "model.safetensors")
    if config is not None:
        text = json.dumps({"model_type": "llama", "quantization_config": config})
        (folder / "config.json").write_text(text)
    return folder


def load(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None) -> Int4Layer:
    checkpoint = Checkpoint(save(folder, tensors, config))
    assert checkpoint.layers == (LAYER,)
    return checkpoint.load(LAYER)


def assert_is(layer: Int4Layer, problem: written.Problem) -> None:
    """The layer is the problem's weight, and its scale_error is the error it has."""
    got, truth = layer.dequantize().double(), problem.truth
    assert got.shape == truth.shape
    rounding = 2.0**-22  # of float32 products
    error = (got - truth).abs()
    assert (error <= (layer.scale_error + rounding) * truth.abs()).all()
    largest = float((error / truth.abs())[truth != 0].max())
    assert layer.scale_error == pytest.approx(largest, abs=rounding)
    assert layer.scale_error < 2.0**-8


CASES = {
    "symmetric": {},
    "zero points": {"zero": True},
    "groups of 32": {"group_size": 32, "zero": True},
    "groups of 128": {"group_size": 128},
    "whole rows": {"group_size": 256, "zero": True},
    "float32 scales": {"scale": torch.float32, "zero": True},
    "bfloat16 scales": {"scale": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(case: str, act_order: bool, version: int, tmp_path: Path) -> None:
    problem = written.problem(**CASES[case], act_order=act_order)
    groups = problem.scale.shape[1]
    config = written.gptq_config(
        256 // groups if groups > 1 else -1,
        sym=problem.zero is None,
        desc_act=act_order,
        checkpoint_format="gptq_v2" if version == 2 else "gptq",
    )
    layer = load(tmp_path, written.gptq(problem, version), config)
    assert_is(layer, problem)
    assert (layer.weight.zero_point is None) == (problem.zero is None)
    assert (layer.k_permutation is None) == (not act_order or groups == 1)


def test_gptq_is_version_1_unless_said_otherwise_and_needs_no_g_idx(tmp_path: Path) -> None:
    problem = written.problem(zero=True)
    tensors = written.gptq(problem)
    del tensors["g_idx"]
    assert_is(load(tmp_path, tensors, written.gptq_config(64)), problem)


@pytest.mark.parametrize("case", CASES)
def test_awq(case: str, tmp_path: Path) -> None:
    problem = written.problem(**CASES[case])
    groups = problem.scale.shape[1]
    config = written.awq_config(256 // groups, zero_point=problem.zero is not None)
    assert_is(load(tmp_path, written.awq(problem), config), problem)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_compressed_tensors(case: str, act_order: bool, fp8: bool, tmp_path: Path) -> None:
    problem = written.problem(n=21, **CASES[case], act_order=act_order)  # N off the words
    groups = problem.scale.shape[1]
    config = written.compressed_tensors_config(
        256 // groups if groups > 1 else None,
        symmetric=problem.zero is None,
        fp8=fp8,
        actorder="group" if act_order else None,
    )
    layer = load(tmp_path, written.compressed_tensors(problem), config)
    assert_is(layer, problem)
    assert (layer.k_permutation is None) == (not act_order or groups == 1)


def test_compressed_tensors_takes_the_scheme_that_names_the_layer(tmp_path: Path) -> None:
    config = written.compressed_tensors_config(32)
    groups = config["config_groups"]
    for name, targets in {"group_1": ["re:.*up_proj"], "group_2": ["model.other"]}.items():
        groups[name] = json.loads(json.dumps(groups["group_0"])) | {"targets": targets}
    groups["group_1"]["weights"]["group_size"] = 64
    problem = written.problem()
    assert_is(load(tmp_path, written.compressed_tensors(problem), config), problem)


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("factor", [None, 1.0, 2.0**-7, 4.0])
@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("config", [None, {"quant_method": "fireq"}])
def test_fireq(
    as_bytes: bool, factor: float | None, scale: torch.dtype, config: dict[str, Any] | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    problem = written.problem(group_size=128, scale=scale)
    tensors = written.fireq(problem, factor, as_bytes)
    tensors["bias"] = torch.randn(24, dtype=torch.bfloat16)
    layer = load(tmp_path, tensors, config)
    assert layer.scale_error == 0
    assert torch.equal(layer.dequantize().double(), problem.truth * (factor or 1))
    assert torch.equal(layer.bias.float(), tensors["bias"].float() * (factor or 1))


def test_wlib_keeps_every_bit(tmp_path: Path) -> None:
    weight = wlib.Int4Weight(
        codes=torch.randint(0, 256, (5, 64), dtype=torch.uint8),
        group_scale=torch.randn(5, 4).bfloat16(),
        zero_point=torch.randn(5, 4),
        channel_scale=torch.randn(5),
    )
    tensors = {
        name: getattr(weight, name)
        for name in ("codes", "group_scale", "zero_point", "channel_scale")
    }
    tensors |= {"k_permutation": torch.randperm(128).int(), "bias": torch.randn(5)}
    config = {"quant_method": "wlib", "format_version": 1}
    folder = save(tmp_path, tensors, config)
    named = {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(
        named, folder / "model.safetensors", {"wlib_format_version": "1", "format": "pt"}
    )
    for path in (folder, folder / "model.safetensors"):
        layer = Checkpoint(path).load(LAYER)
        for name, tensor in tensors.items():
            owner = layer if name in ("k_permutation", "bias") else layer.weight
            assert torch.equal(getattr(owner, name), tensor), name
    (folder / "config.json").unlink()
    assert Checkpoint(folder).layers == (LAYER,)


def test_act_order_reaches_the_result_of_the_layer(tmp_path: Path) -> None:
    problem = written.problem(zero=True, act_order=True)
    config = written.gptq_config(64, desc_act=True)
    tensors = written.gptq(problem) | {"bias": torch.randn(24).half()}
    layer = load(tmp_path, tensors, config)
    module, x = layer.linear(), torch.randn(7, 256)
    xq, xs = wlib.fp8_quantize(x)
    x_exact = xq.double() * xs.double()[:, None]
    exact = x_exact @ layer.dequantize().double().T + tensors["bias"].double()
    magnitude = x_exact.abs() @ layer.dequantize().double().abs().T
    assert ((module(x) - exact).abs() <= 256 * 2.0**-23 * magnitude).all()
    in_order = wlib.nn.Int4Fp8Linear.from_weight(layer.weight, layer.bias)
    assert ((in_order(x) - exact).abs() > 0.1 * magnitude).any()
    empty = wlib.nn.Int4Fp8Linear(
        256, 24, group_size=64, has_zero_point=True, has_channel_scale=True, has_k_permutation=True
    )
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(x), module(x))
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        (torch.arange(128), TypeError, "k_permutation of dtype torch.int32, got torch.int64"),
        (torch.arange(64).int(), ValueError, r"k_permutation of shape \[128\], got \[64\]"),
        (torch.arange(128, device="meta").int(), ValueError, "k_permutation on cpu, got meta"),
    ],
)
def test_a_permutation_that_does_not_fit_a_layer_is_refused(
    order: Tensor, kind: type[Exception], message: str
) -> None:
    weight = wlib.Int4Weight.quantize(torch.randn(8, 128))
    with pytest.raises(kind, match=message):
        wlib.nn.Int4Fp8Linear.from_weight(weight, None, order)


def scales_read(scale: Tensor, folder: Path) -> Int4Layer:
    """The layer of GPTQ scales [N, K/G], groups of 32."""
    n, groups = scale.shape
    q = torch.randint(-8, 8, (n, groups * 32))
    problem = written.Problem(q, scale, None, torch.arange(groups * 32) // 32)
    return load(folder, written.gptq(problem), written.gptq_config(32, sym=True))


def test_scales_that_bf16_holds_are_kept_without_a_channel_scale(tmp_path: Path) -> None:
    scale = torch.randn(8, 6).bfloat16().half() + 2
    scale = scale.bfloat16().half()
    layer = scales_read(scale, tmp_path)
    assert layer.weight.channel_scale is None
    assert layer.scale_error == 0
    assert torch.equal(layer.weight.group_scale.float(), scale.float())


def test_the_scales_of_whole_rows_are_kept_exactly(tmp_path: Path) -> None:
    problem = written.problem(group_size=256, scale=torch.float32)
    layer = load(tmp_path, written.gptq(problem), written.gptq_config(-1, sym=True))
    assert torch.equal(layer.weight.channel_scale, problem.scale[:, 0])
    assert layer.scale_error == 0


def test_the_channel_factor_lessens_the_rounding_of_scales(tmp_path: Path) -> None:
    scale = ((torch.rand(512, 32) + 1) / 100).half()
    weight = scales_read(scale, tmp_path).weight
    exact = scale.double()
    folded = weight.group_scale.double() * weight.channel_scale.double()[:, None]
    plain = scale.bfloat16().double()
    ratio = (folded - exact).norm() / (plain - exact).norm()
    assert 0.6 < ratio < 0.8
    assert (folded - exact).norm() / exact.norm() < 0.0014


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scales_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    scale = torch.ones(8, 2)
    scale[3, 1] = value
    with pytest.raises(ValueError, match=rf"finite scales.*argument '{LAYER}.scales'"):
        scales_read(scale, tmp_path)


def stored(problem: written.Problem, format_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the config of a problem, by the format's definition."""
    size = problem.q.shape[1] // problem.scale.shape[1]
    symmetric = problem.zero is None
    act_order = bool((problem.g_idx.diff() < 0).any())
    if format_name == "gptq":
        config = written.gptq_config(size, sym=symmetric, desc_act=act_order)
        return written.gptq(problem), config
    if format_name == "awq":
        return written.awq(problem), written.awq_config(size, zero_point=not symmetric)
    if format_name == "fireq":
        return written.fireq(problem), {"quant_method": "fireq"}
    order = "group" if act_order else None
    config = written.compressed_tensors_config(size, symmetric=symmetric, actorder=order)
    return written.compressed_tensors(problem), config


@pytest.mark.parametrize("source", ["gptq", "awq", "compressed-tensors", "fireq"])
@pytest.mark.parametrize("target", list(FORMATS))
def test_conversion_writes_what_the_definition_says(
    source: str, target: str, tmp_path: Path
) -> None:
    """Every scale fits BF16 and float16 alike, so that nothing may change in a single bit."""
    plain = "fireq" in (source, target)
    problem = written.problem(
        zero=not plain,
        act_order=not plain and "awq" not in (source, target),
        group_size=128 if plain else 64,
        scale=torch.bfloat16,
    )

    def in_dtype(name: str) -> written.Problem:
        return replace(problem, scale=problem.scale.to(SCALE_DTYPES[name]))

    tensors, config = stored(in_dtype(source), source)
    bias = torch.randn(24).half()
    folder = save(tmp_path / "in", tensors | {"bias": bias}, config)
    done = convert(folder, tmp_path / "out", target)
    assert (done.layers, done.scale_error, done.worst_layer) == (1, 0.0, None)
    layer = Checkpoint(tmp_path / "out").load(LAYER)
    assert torch.equal(layer.dequantize().double(), problem.truth)
    got = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(got.pop(f"{LAYER}.bias"), bias)
    if target != "wlib":
        expected, _ = stored(in_dtype(target), target)
        assert got.keys() == {f"{LAYER}.{name}" for name in expected}
        for name, tensor in expected.items():
            assert got[f"{LAYER}.{name}"].dtype == tensor.dtype, name
            assert torch.equal(got[f"{LAYER}.{name}"], tensor), name


def test_conversion_reports_the_error_it_makes(tmp_path: Path) -> None:
    problem = written.problem(scale=torch.float32, zero=True)
    folder = save(tmp_path / "in", *stored(problem, "gptq"))
    for target in ("wlib", "awq", "compressed-tensors"):
        done = convert(folder, tmp_path / target, target)
        got = Checkpoint(tmp_path / target).load(LAYER).dequantize().double()
        largest = ((got - problem.truth).abs() / problem.truth.abs())[problem.truth != 0].max()
        assert 0.5 * done.scale_error < largest < done.scale_error + 2.0**-22
        assert done.worst_layer == LAYER


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({"zero_point": torch.full((24, 2), 0.5)}, "gptq", "zero points that are integers"),
        ({"zero_point": torch.full((24, 2), 9.0)}, "compressed-tensors", "integers from -8 to 7"),
        ({"zero_point": torch.ones(24, 2)}, "fireq", "without zero points"),
        ({"group_scale": torch.ones(24, 4).bfloat16()}, "fireq", "groups of 128 columns, got 64"),
        ({"group_scale": torch.full((24, 2), 1e6).bfloat16()}, "gptq", "scales within torch.float"),
        ({"group_scale": torch.full((24, 2), 1e-9).bfloat16()}, "awq", "scales within torch.float"),
        ({"k_permutation": torch.arange(256).flip(0).int()}, "awq", "columns in order, as AWQ"),
        ({"k_permutation": torch.arange(256).flip(0).int()}, "fireq", "columns in order, as FireQ"),
        ({"codes": torch.zeros(23, 128).byte()}, "gptq", "N a multiple of 8, got 23"),
        ({"codes": torch.zeros(23, 128).byte()}, "awq", "N a multiple of 8, got 23"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    change: dict[str, Tensor], target: str, message: str, tmp_path: Path
) -> None:
    codes = change.get("codes", torch.zeros(24, 128).byte())
    tensors = {"codes": codes, "group_scale": torch.ones(len(codes), 2).bfloat16()} | change
    folder = save(tmp_path / "in", tensors, None)
    named = {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(named, folder / "model.safetensors", {"wlib_format_version": "1"})
    with pytest.raises(ValueError, match=message) as error:
        convert(folder, tmp_path / "out", target)
    assert LAYER in str(error.value)
    assert not (tmp_path / "out").exists()


def test_layers_of_two_group_sizes_fit_wlib_alone(tmp_path: Path) -> None:
    tensors = {}
    for name, size in {"a": 64, "b": 128}.items():
        weight = wlib.Int4Weight.quantize(torch.randn(16, 256), size)
        tensors |= {f"{name}.codes": weight.codes, f"{name}.group_scale": weight.group_scale}
    source = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, source, {"wlib_format_version": "1"})
    assert convert(source, tmp_path / "wlib", "wlib").layers == 2
    for target in ("gptq", "awq", "compressed-tensors"):
        with pytest.raises(ValueError, match="one group size"):
            convert(source, tmp_path / "out", target)


def test_compressed_tensors_agrees_with_its_own_package(tmp_path: Path) -> None:
    pack = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    for group_size in (64, None):
        problem = written.problem(group_size=group_size or 256, zero=True, scale=torch.bfloat16)
        config = written.compressed_tensors_config(group_size, symmetric=False)
        group = config["config_groups"]["group_0"]
        scheme = quantization.QuantizationScheme.model_validate(group)
        theirs = pack.PackedQuantizationCompressor.compress(
            {
                "weight": problem.truth.float(),
                "weight_scale": problem.scale.float(),
                "weight_zero_point": problem.zero.to(torch.int8),
            },
            scheme,
        )
        ours = load(tmp_path, theirs, config)
        assert torch.equal(ours.dequantize().double(), problem.truth)
        tensors, _ = FORMATS["compressed-tensors"].write(ours, LAYER)
        tensors["weight_scale"] = tensors["weight_scale"].float()
        back = pack.PackedQuantizationCompressor.decompress(tensors, scheme)
        assert torch.equal(back["weight"].double(), problem.truth)
