"""Configs and tensors no format allows, each refused by the name of the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import formats_written as written
from test_formats import LAYER, load, save
from test_formats_files import REFUSED
from wlib.formats import Checkpoint, convert


@pytest.mark.parametrize("text", ["{", "[]", '{"quantization_config": 3}', "[" * 100_000])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(1)}, None)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"argument 'config\.json"):
        Checkpoint(tmp_path)


def weights(**changes: Any) -> dict[str, Any]:
    return written.compressed_tensors_config(**{"group_size": 64, **changes})


def group(**changes: Any) -> dict[str, Any]:
    config = weights()
    config["config_groups"]["group_0"].update(changes)
    return config


INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({}, "quant_method"),
    ({"quant_method": "bitsandbytes"}, "quant_method"),
    ({"quant_method": ["gptq"]}, "quant_method"),
    (written.gptq_config(64, bits=8), "bits"),
    (written.gptq_config(64, bits=True), "bits"),
    (written.gptq_config(64, bits=4.0), "bits"),
    (written.gptq_config(64, checkpoint_format="marlin"), "checkpoint_format"),
    (written.gptq_config(64, sym=None), "sym"),
    (written.gptq_config(64, desc_act=1), "desc_act"),
    (written.gptq_config("64"), "group_size"),  # type: ignore[arg-type]
    (written.gptq_config(64, dynamic={"+:.*": {"bits": 8}}), "dynamic"),
    (written.awq_config(64, bits=3), "bits"),
    (written.awq_config(64, version="gemv"), "version"),
    (written.awq_config(64, zero_point="yes"), "zero_point"),
    (written.awq_config(None), "group_size"),  # type: ignore[arg-type]
    (weights() | {"format": "nvfp4-pack-quantized"}, "format"),
    (weights() | {"sparsity_config": {"format": "sparse-24"}}, "sparsity_config"),
    (weights() | {"transform_config": {"u": {}}}, "transform_config"),
    (weights() | {"config_groups": {}}, "config_groups"),
    (weights() | {"config_groups": []}, "config_groups"),
    (group(weights=None), "group_0.weights"),
    (weights(num_bits=8), "weights.num_bits"),
    (weights(type="float"), "weights.type"),
    (weights(strategy="tensor"), "weights.strategy"),
    (weights(symmetric=None), "weights.symmetric"),
    (weights(dynamic=True), "weights.dynamic"),
    (weights(group_size=64.0), "weights.group_size"),
    (weights(actorder="new"), "weights.actorder"),
    (group(targets="Linear"), "targets"),
    (group(targets=[3]), "targets"),
    (group(format="marlin-24"), "group_0.format"),
    (group(output_activations=INPUTS), "output_activations"),
    (group(input_activations=INPUTS | {"type": "int"}), "input_activations.type"),
    (group(input_activations=INPUTS | {"num_bits": 4}), "input_activations.num_bits"),
    (group(input_activations=INPUTS | {"dynamic": False}), "input_activations.dynamic"),
    (group(input_activations=INPUTS | {"strategy": "tensor"}), "input_activations.strategy"),
    ({"quant_method": "wlib", "format_version": 2}, "format_version"),
    ({"quant_method": "wlib"}, "format_version"),
]


@pytest.mark.parametrize(("config", "field"), CONFIGS)
def test_configs_wlib_cannot_read_are_refused_by_field(
    config: dict[str, Any], field: str, tmp_path: Path
) -> None:
    save(tmp_path, {"w": torch.ones(1)}, config)
    with pytest.raises(ValueError, match=REFUSED) as error:
        Checkpoint(tmp_path)
    assert str(error.value).endswith(f"{field}')")
    assert "config.json: quantization_config." in str(error.value)


@pytest.mark.parametrize("version", ["2", None])
def test_wlib_files_of_another_version_are_refused(version: str | None, tmp_path: Path) -> None:
    save(tmp_path, {"codes": torch.ones(1)}, {"quant_method": "wlib", "format_version": 1})
    path = tmp_path / "model.safetensors"
    metadata = {"wlib_format_version": version} if version else None
    safetensors.torch.save_file({"a.codes": torch.ones(1)}, path, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors: __metadata__\.wlib_format_version"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 64, "sym": False, "desc_act": True}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 64, "zero_point": True}),
    ],
)
def test_configs_of_the_quantisers_own(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    problem = written.problem(zero=True, scale=torch.bfloat16)
    problem = written.Problem(problem.q, problem.scale.half(), problem.zero, problem.g_idx)
    tensors = written.gptq(problem) if name.startswith("quantize") else written.awq(problem)
    save(tmp_path, tensors, None)
    (tmp_path / name).write_text(json.dumps(config))
    assert torch.equal(Checkpoint(tmp_path).load(LAYER).dequantize().double(), problem.truth)


Change = Callable[[dict[str, Tensor]], None]


def put(**tensors: Tensor) -> Change:
    return lambda layer: layer.update(tensors)


def without(name: str) -> Change:
    return lambda layer: layer.__delitem__(name)


GPTQ, AWQ, CT, FIREQ, WLIB = "gptq", "awq", "compressed-tensors", "fireq", "wlib"
TENSORS: list[tuple[str, Change, type[Exception], str]] = [
    (GPTQ, without("scales"), ValueError, "scales"),
    (GPTQ, without("qzeros"), ValueError, "qzeros"),
    (GPTQ, put(qweight=torch.zeros(32, 24)), TypeError, "qweight"),
    (GPTQ, put(qweight=torch.zeros(32, dtype=torch.int32)), ValueError, "qweight"),
    (GPTQ, put(scales=torch.ones(4, 23).half()), ValueError, "scales"),
    (GPTQ, put(scales=torch.ones(4, 24).double()), TypeError, "scales"),
    (GPTQ, put(scales=torch.ones(8, 24).half()), ValueError, "scales"),
    (GPTQ, put(scales=torch.ones(3, 24).half()), ValueError, "scales"),
    (GPTQ, put(scales=torch.ones(0, 24).half()), ValueError, "scales"),
    (GPTQ, put(qweight=torch.zeros(0, 24).int()), ValueError, "scales"),
    (
        CT,
        put(
            weight_packed=torch.zeros(0, 32).int(),
            weight_shape=torch.tensor([0, 256]),
            weight_scale=torch.ones(0, 4).half(),
        ),
        ValueError,
        "weight_scale",
    ),
    (GPTQ, put(qzeros=torch.zeros(4, 4, dtype=torch.int32)), ValueError, "qzeros"),
    (GPTQ, put(g_idx=torch.zeros(256, dtype=torch.int32)), ValueError, "g_idx"),
    (GPTQ, put(g_idx=torch.arange(256).int()), ValueError, "g_idx"),
    (GPTQ, put(g_idx=torch.arange(256).int() // 64 - 1), ValueError, "g_idx"),
    (GPTQ, put(g_idx=torch.arange(255).int()), ValueError, "g_idx"),
    (GPTQ, put(bias=torch.zeros(25)), ValueError, "bias"),
    (GPTQ, put(bias=torch.zeros(24, dtype=torch.int32)), TypeError, "bias"),
    (GPTQ, put(input_scale=torch.ones(1)), ValueError, "input_scale"),
    (AWQ, put(g_idx=torch.arange(256).int() // 64), ValueError, "g_idx"),
    (AWQ, without("qzeros"), ValueError, "qzeros"),
    (AWQ, put(qzeros=torch.zeros(4, 24, dtype=torch.int32)), ValueError, "qzeros"),
    (CT, put(weight_shape=torch.tensor([24, 255])), ValueError, "weight_shape"),
    (CT, put(weight_shape=torch.tensor([23, 256])), ValueError, "weight_shape"),
    (CT, put(weight_shape=torch.tensor([24, -256])), ValueError, "weight_shape"),
    (CT, put(weight_shape=torch.tensor([24.0, 256.0])), TypeError, "weight_shape"),
    (CT, put(weight_shape=torch.tensor([24, 256, 1])), ValueError, "weight_shape"),
    (CT, without("weight_zero_point"), ValueError, "weight_zero_point"),
    (CT, put(weight_zero_point=torch.zeros(24, 4).char()), TypeError, "weight_zero_point"),
    (CT, put(weight_g_idx=torch.arange(256).int() // 64), ValueError, "weight_g_idx"),
    (CT, put(weight_scale=torch.ones(24, 1).half()), ValueError, "weight_scale"),
    (CT, put(input_scale=torch.ones(1)), ValueError, "input_scale"),
    (FIREQ, put(weight=torch.zeros(24, 256).bfloat16()), TypeError, "weight"),
    (FIREQ, put(weight_scale=torch.ones(24, 4).bfloat16()), ValueError, "weight_scale"),
    (FIREQ, put(weight_scale=torch.ones(24, 2).half()), TypeError, "weight_scale"),
    (FIREQ, put(per_tensor_scale_inv=torch.tensor([3.0])), ValueError, "per_tensor_scale_inv"),
    (FIREQ, put(per_tensor_scale_inv=torch.tensor([-2.0])), ValueError, "per_tensor_scale_inv"),
    (FIREQ, put(per_tensor_scale_inv=torch.tensor([torch.nan])), ValueError,
     "per_tensor_scale_inv"),
    (WLIB, put(codes=torch.zeros(24, 128)), TypeError, "codes"),
    (WLIB, put(group_scale=torch.ones(24, 3).bfloat16()), ValueError, "group_scale"),
    (WLIB, put(group_scale=torch.ones(24, 4).half()), TypeError, "group_scale"),
    (WLIB, put(zero_point=torch.ones(24, 5)), ValueError, "zero_point"),
    (WLIB, put(channel_scale=torch.ones(25)), ValueError, "channel_scale"),
    (WLIB, put(k_permutation=torch.zeros(256).int()), ValueError, "k_permutation"),
    (WLIB, put(k_permutation=torch.arange(256)), TypeError, "k_permutation"),
]  # fmt: skip


def layer_of(format_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A sound layer of [24, 256], with zero points where the format has them."""
    if format_name == FIREQ:
        problem = written.problem(group_size=128, scale=torch.bfloat16)
        return written.fireq(problem), {"quant_method": FIREQ}
    if format_name == WLIB:
        scale = torch.ones(24, 4).bfloat16()
        tensors = {"codes": torch.zeros(24, 128).byte(), "group_scale": scale}
        return tensors, {"quant_method": WLIB, "format_version": 1}
    problem = written.problem(zero=True)
    return {
        GPTQ: (written.gptq(problem), written.gptq_config(64)),
        AWQ: (written.awq(problem), written.awq_config(64)),
        CT: (written.compressed_tensors(problem), weights(symmetric=False)),
    }[format_name]


def load_layer(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    save(folder, tensors, config)
    named = {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    metadata = {"wlib_format_version": "1"} if config["quant_method"] == WLIB else None
    safetensors.torch.save_file(named, folder / "model.safetensors", metadata)
    Checkpoint(folder).load(LAYER)


@pytest.mark.parametrize(("format_name", "change", "kind", "field"), TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(
    format_name: str, change: Change, kind: type[Exception], field: str, tmp_path: Path
) -> None:
    tensors, config = layer_of(format_name)
    load_layer(tmp_path, tensors, config)
    change(tensors)
    with pytest.raises(kind) as error:
        load_layer(tmp_path, tensors, config)
    assert f"{LAYER}.{field}" in str(error.value)
    assert str(error.value).startswith("wlib.formats: ")


@pytest.mark.parametrize(
    ("config", "stored", "argument"),
    [
        (written.gptq_config(128), GPTQ, "scales"),
        (written.gptq_config(-1), GPTQ, "scales"),
        (written.gptq_config(64, sym=True), GPTQ, "qzeros"),
        (written.gptq_config(64, checkpoint_format="gptq_v2", sym=True), GPTQ, "qzeros"),
        (written.awq_config(128), AWQ, "scales"),
        (written.awq_config(64, zero_point=False), AWQ, "qzeros"),
        (written.compressed_tensors_config(32, symmetric=False), CT, "weight_scale"),
        (written.compressed_tensors_config(None, symmetric=False), CT, "weight_scale"),
        (written.compressed_tensors_config(64), CT, "weight_zero_point"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    config: dict[str, Any], stored: str, argument: str, tmp_path: Path
) -> None:
    tensors, _ = layer_of(stored)
    with pytest.raises(ValueError, match=rf"\(argument '{LAYER}\.{argument}'\)"):
        load(tmp_path, tensors, config)


def test_group_sizes_no_kernel_serves_are_refused_by_layer(tmp_path: Path) -> None:
    problem = written.problem(group_size=16)
    with pytest.raises(ValueError, match=rf"{LAYER}\.scales: .*got 16 \(argument 'group_size'\)"):
        load(tmp_path, written.gptq(problem), written.gptq_config(16))


def test_models_without_int4_layers_load_but_do_not_convert(tmp_path: Path) -> None:
    fp8 = {"weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "weight_scale": torch.ones(1)}
    folder = save(tmp_path / "in", fp8, None)
    checkpoint = Checkpoint(folder)
    assert checkpoint.format is None
    assert checkpoint.layers == ()
    assert checkpoint.read(f"{LAYER}.weight_scale").item() == 1
    with pytest.raises(ValueError, match="INT4 layers"):
        convert(folder, tmp_path / "out", "wlib")
