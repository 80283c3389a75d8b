"""Adapter files that are not what they say, each refused by the name of the field or tensor."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters_written import (
    ALPHA,
    CORE,
    KOHYA_LORA,
    KRON,
    PEFT_LORA,
    SHAPES,
    Case,
    Make,
    Net,
    cases,
    flora,
    locon_tucker,
    loha,
    loha_tucker,
    lora_embedding,
    save_file,
    save_peft,
)
from test_formats_files import REFUSED
from wlib.formats import Adapter, LoraDelta, load_adapter, merge_adapter

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("peft_type", {"peft_type": "BOFT"}),
    ("peft_type", {"peft_type": None}),
    ("peft_type", {"peft_type": "LOHA", "alpha": 1}),
    ("lora_alpha", {"lora_alpha": None}),
    ("lora_alpha", {"lora_alpha": float("nan")}),
    ("lora_alpha", {"lora_alpha": 10**400}),
    ("lora_alpha", {"lora_alpha": "16"}),
    ("r", {"r": 0}),
    ("r", {"r": True}),
    ("r", {"r": 3}),
    ("rank_pattern", {"rank_pattern": [2]}),
    ("up", {"rank_pattern": {"up": "2"}}),
    ("r", {"rank_pattern": {"up": 2}}),
    ("(", {"alpha_pattern": {"(": 2}}),
    ("(a+)+", {"alpha_pattern": {"(a+)+": 2}}),
    (".*.*.*u", {"alpha_pattern": {".*.*.*u": 2}}),
    ("use_dora", {"use_dora": True}),
    ("bias", {"bias": "lora_only"}),
    ("lora_bias", {"lora_bias": True}),
    ("modules_to_save", {"modules_to_save": ["head"]}),
    ("layer_replication", {"layer_replication": [[0, 2]]}),
    ("target_parameters", {"target_parameters": ["experts.up"]}),
    ("init_lora_weights", {"init_lora_weights": "pissa"}),
    ("use_rslora", {"use_rslora": 1}),
    ("field_of_next_year", {"field_of_next_year": "x"}),
    ("r2", {"r2": 8}),
    ("use_khatri_rao", {"use_khatri_rao": True}),
]


@pytest.mark.parametrize(("field", "change"), CONFIGS)
def test_peft_configs_are_refused_by_field(
    field: str, change: dict[str, Any], tmp_path: Path
) -> None:
    made = cases(PEFT_LORA, "block.up")
    load_adapter(save_peft(tmp_path, made, "LORA"))
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_adapter(save_peft(tmp_path, made, "LORA", **change))
    assert str(error.value).endswith(f".{field}')")


Change = Callable[[dict[str, Tensor]], Any]


def drop(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda tensors: tensors.update({name: torch.ones(shape, dtype=dtype)})


MODULES: dict[str, tuple[Make, str]] = {
    "lora": (KOHYA_LORA, "block.up"),  # [24, 16]
    "locon": (locon_tucker, "conv"),  # [12, 4, 3, 3]
    "loha": (loha, "block.up"),
    "loha core": (loha_tucker, "conv"),
    "lokr": (KRON, "block.up"),
    "lokr core": (CORE, "conv"),
    "flora": (flora, "conv"),
}
TENSORS: list[tuple[str, Change, type[Exception], str]] = [
    ("lora", drop("lora_up.weight"), ValueError, "lora_up.weight"),
    ("lora", drop("lora_down.weight"), ValueError, "lora_down.weight"),
    ("lora", put("lora_up.weight", 24, 5), ValueError, "lora_up.weight"),
    ("lora", put("lora_up.weight", 24, 4, 1), ValueError, "lora_up.weight"),
    ("lora", put("lora_down.weight", 16), ValueError, "lora_down.weight"),
    ("lora", put("lora_down.weight", 0, 16), ValueError, "lora_down.weight"),
    ("lora", put("lora_down.weight", 4, 16, dtype=torch.int8), TypeError, "lora_down.weight"),
    ("lora", put("lora_mid.weight", 4, 4), ValueError, "lora_mid.weight"),
    ("lora", put("dora_scale", 1, 16), ValueError, "dora_scale"),
    ("lora", put("bias_values", 3), ValueError, "bias_values"),
    ("lora", put("lora_A.weight", 4, 16), ValueError, "lora_down.weight"),
    ("lora", put("hada_w1_a", 24, 4), ValueError, "lora_down.weight"),
    ("lora", put("alpha", 2), ValueError, "alpha"),
    ("lora", lambda t: t.update(alpha=torch.tensor(torch.inf)), ValueError, "alpha"),
    ("lora", put("alpha", dtype=torch.bool), TypeError, "alpha"),
    ("locon", put("lora_mid.weight", 4, 5, 3, 3), ValueError, "lora_mid.weight"),
    ("locon", put("lora_down.weight", 4, 4, 3, 3), ValueError, "lora_down.weight"),
    ("loha", drop("hada_w1_a"), ValueError, "hada_w1_a"),
    ("loha", drop("hada_w2_b"), ValueError, "hada_w2_b"),
    ("loha", put("hada_w2_a", 23, 4), ValueError, "hada_w2_a"),
    ("loha", put("hada_w2_b", 5, 16), ValueError, "hada_w2_b"),
    ("loha", put("hada_w1_b", 4, 0), ValueError, "hada_w1_b"),
    ("loha", put("hada_t1", 4, 4, 3, 3), ValueError, "hada_t2"),
    ("loha core", drop("hada_t1"), ValueError, "hada_t1"),
    ("loha core", drop("hada_t2"), ValueError, "hada_t2"),
    ("loha core", put("hada_t2", 4, 4, 3, 1), ValueError, "hada_t1"),
    ("lokr", drop("lokr_w1_a"), ValueError, "lokr_w1_a"),
    ("lokr", drop("lokr_w2_b"), ValueError, "lokr_w2_b"),
    ("lokr", put("lokr_w1", 2, 4), ValueError, "lokr_w1_a"),
    ("lokr", put("lokr_w2", 12, 4), ValueError, "lokr_w2_a"),
    ("lokr", put("lokr_w2_b", 5, 4), ValueError, "lokr_w2_b"),
    ("lokr", put("lokr_t1", 4, 4, 1, 1), ValueError, "lokr_t1"),
    ("lokr core", put("lokr_t2", 4, 4), ValueError, "lokr_t2"),
    ("flora", drop("flora_layer.param_G"), ValueError, "flora_layer.param_G"),
    ("flora", put("flora_layer.param_G", 3), ValueError, "flora_layer.param_G"),
    ("flora", put("flora_layer.param_G", 3, 2, 0, 2), ValueError, "flora_layer.param_G"),
    ("flora", drop("flora_layer.param_1"), ValueError, "flora_layer.param_1"),
    ("flora", put("flora_layer.param_2", 3, 3), ValueError, "flora_layer.param_2"),
    ("flora", put("flora_layer.param_4", 3, 3), ValueError, "flora_layer.param_4"),
    ("flora", put("flora_layer.param_5", 3, 3), ValueError, "flora_layer.param_5"),
    ("flora", put("alpha"), ValueError, "alpha"),
    ("flora", put("base_layer.weight", 12, 4, 3, 3), ValueError, "base_layer.weight"),
]


@pytest.mark.parametrize(("name", "change", "kind", "field"), TENSORS)
def test_tensors_are_refused_by_name(
    name: str, change: Change, kind: type[Exception], field: str, tmp_path: Path
) -> None:
    make, module = MODULES[name]
    made = make(module, SHAPES[module])
    path = tmp_path / "a.safetensors"
    load_adapter(save_file(path, [made]))
    change(made.tensors)
    with pytest.raises(kind, match=REFUSED) as error:
        load_adapter(save_file(path, [made]))
    assert str(error.value).endswith(f"(argument '{module}.{field}')")


def test_names_of_peft_are_its_own(tmp_path: Path) -> None:
    made = cases(PEFT_LORA, "block.up")
    with pytest.raises(ValueError, match=r"expected adapter_config\.json .*block\.up\.lora_A"):
        load_adapter(save_file(tmp_path / "a.safetensors", made))
    with pytest.raises(ValueError, match=r"tensors of LORA, as .*, got LoCon"):
        load_adapter(save_peft(tmp_path / "b", cases(KOHYA_LORA, "block.up"), "LORA"))
    made[0].tensors["alpha"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"got LoRA \(argument 'base_model.*\.alpha'\)"):
        load_adapter(save_peft(tmp_path / "c", made, "LORA"))
    embedding = lora_embedding("embedding", SHAPES["embedding"])
    del embedding.tensors["lora_embedding_B"]
    with pytest.raises(ValueError, match=r"argument 'embedding\.lora_embedding_B'"):
        load_adapter(save_peft(tmp_path / "d", [embedding], "LORA"))
    folder = save_peft(tmp_path / "e", cases(PEFT_LORA, "block.up"), "LORA")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"base_model.model", b"best_model.model"))
    with pytest.raises(ValueError, match=r"expected a name that begins with base_model\.model\."):
        load_adapter(folder)


def test_an_alpha_alone_and_a_prefix_of_none(tmp_path: Path) -> None:
    path = save_file(tmp_path / "a.safetensors", [Case("up", {}, torch.ones(1))], ALPHA)
    with pytest.raises(ValueError, match=r"beside it, got nothing \(argument 'up\.alpha'\)"):
        load_adapter(path)
    with pytest.raises(ValueError, match=r"begin with 'down', got none \(argument 'prefix'\)"):
        load_adapter(path, "down")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = save_peft(tmp_path, cases(PEFT_LORA, "block.up"), "LORA")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for path in (folder, folder / "adapter_model.bin"):
        with pytest.raises(ValueError, match=REFUSED):
            load_adapter(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"peft_type": "LORA"}'])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path, cases(PEFT_LORA, "block.up"), "LORA")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"argument 'adapter_config\.json"):
        load_adapter(folder)


def refuses(path: Path) -> bool:
    """Whether the adapter is refused; it fails if it raises anything but a refusal."""
    try:
        load_adapter(path)
    except (ValueError, TypeError) as error:
        if not str(error).startswith("wlib.formats: expected "):
            raise
        return True
    return False


def test_every_truncation_and_random_damage(tmp_path: Path) -> None:
    """A file is read as it is or refused in the library's words; nothing else is raised."""
    path = save_file(tmp_path / "a.safetensors", cases(CORE, "conv"), ALPHA)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for size in range(0, len(whole), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=REFUSED):
            load_adapter(path)
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(8 + length)] = generator.randrange(256)
        path.write_bytes(damaged)
        refused += refuses(path)
    assert refused > 200
    config = json.loads((save_peft(tmp_path, cases(KRON, "line"), "LOKR")
                         / "adapter_config.json").read_text())  # fmt: skip
    for key in config:
        for value in (None, True, -1, 2.5, "x", [], {}, {"a": {}}, 10**30):
            text = json.dumps(config | {key: value})
            (tmp_path / "adapter_config.json").write_text(text)
            refuses(tmp_path)


def adapter(**operands: tuple[int, ...]) -> Adapter:
    """LoRA deltas of rank 2 for weights of these shapes."""
    deltas = {
        name: LoraDelta(1.0, torch.ones(2, *shape[1:]), torch.ones(shape[0], 2))
        for name, shape in operands.items()
    }
    return Adapter("peft", deltas)


MERGES: list[tuple[Adapter, dict[str, Any], type[Exception], str]] = [
    (adapter(head=(8, 4)), {}, ValueError, r"one module head in the model, got none .*'head'"),
    (adapter(block=(8, 4)), {}, ValueError, r"a module with a weight, got ModuleDict .*'block'"),
    (adapter(conv=(12, 4)), {}, ValueError, r"\[12, 4, 3, 3\], got \[12, 4\] .*'conv'"),
    (adapter(conv=(12, 4, 9, 1)), {}, ValueError, r"got \[12, 4, 9, 1\] .*'conv'"),
    (adapter(block_up=(16, 24)), {}, ValueError, r"\[24, 16\], got \[16, 24\] .*'block_up'"),
    (adapter(**{"block_up": (24, 16), "block.up": (24, 16)}), {}, ValueError,
     r"one delta for block\.up, got also block_up"),
    (adapter(codes=(8, 4)), {}, TypeError, r"codes\.weight of dtype"),
    (adapter(a_b_c=(2, 2)), {}, ValueError, r"got a\.b_c and a_b\.c"),
    (adapter(conv=(12, 4, 3, 3)), {"scale": float("nan")}, ValueError, r"got nan .*'scale'"),
    (adapter(line=(6, 4, 5)), {"in_place": True}, ValueError, r"a contiguous weight .*'line'"),
    (adapter(embedding=(10, 16), tied=(10, 16)), {"in_place": True}, ValueError,
     r"each weight once"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "options", "kind", "message"), MERGES)
def test_merges_are_refused_before_anything_is_changed(
    given: Adapter, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = Net()
    model.codes = nn.Module()
    model.codes.weight = nn.Parameter(torch.ones(8, 4, dtype=torch.int8), requires_grad=False)
    model.a = nn.ModuleDict({"b_c": nn.Linear(2, 2)})
    model.a_b = nn.ModuleDict({"c": nn.Linear(2, 2)})
    model.line.weight.data = model.line.weight.data.transpose(0, 2).contiguous().transpose(0, 2)
    model.tied = nn.Linear(16, 10)
    model.tied.weight = model.embedding.weight
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    good = adapter(**{"block.down": (8, 24)}).deltas
    mixed = Adapter("peft", {**good, **given.deltas})
    with pytest.raises(kind, match=message) as error:
        merge_adapter(model, mixed, **options)
    assert str(error.value).startswith("wlib.formats.merge_adapter: expected ")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
