"""Thin files for transformers, vLLM and `kernels`, called as those call them.

Stand-ins take the place of what is not installed; tests that need the real one are skipped then.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_kernels
import wlib
from wlib.nn import Int4Fp8Linear

FOLDER = Path(__file__).parents[1] / "examples" / "integrations"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(patch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    patch.setitem(sys.modules, name, module)


class Registry(dict[str, Any]):
    """Decorators that note a class under a name."""

    def register(self, name: str) -> Any:
        def note(cls: type) -> type:
            assert name not in self
            self[name] = cls
            return cls

        return note


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# transformers


class HfQuantizer:
    def __init__(self, quantization_config: Any, pre_quantized: bool = True) -> None:
        self.quantization_config = quantization_config
        self.pre_quantized = pre_quantized


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Both registries after the example was imported."""
    configs, quantizers = Registry(), Registry()
    stand_in(
        monkeypatch,
        "transformers.quantizers",
        HfQuantizer=HfQuantizer,
        register_quantization_config=configs.register,
        register_quantizer=quantizers.register,
    )
    stand_in(monkeypatch, "transformers.utils.quantization_config", QuantizationConfigMixin=object)
    load("transformers_quantizer")
    return SimpleNamespace(config=configs["wlib"], quantizer=quantizers["wlib"])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 64, bias=False)
        self.lm_head = nn.Linear(64, 8)


def test_transformers_replaces_linear_layers_after_loading(transformers: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    before = dict(model.named_children())
    config = transformers.config(group_size=32, skip=["lm_head", "seco*"], clip_search=False)
    quantizer = transformers.quantizer(config, pre_quantized=False)
    quantizer.validate_environment(device_map=None)
    assert quantizer._process_model_before_weight_loading(model) is model
    assert dict(model.named_children()) == before
    assert quantizer._process_model_after_weight_loading(model, config=None) is model
    assert isinstance(model.first, Int4Fp8Linear)
    assert (model.second, model.lm_head) == (before["second"], before["lm_head"])
    x = random(3, 64)
    assert torch.equal(model.first(x), Int4Fp8Linear.from_linear(before["first"], 32)(x))
    assert not quantizer.is_serializable()
    assert not quantizer.is_serializable(safe_serialization=True)
    assert quantizer.is_trainable is False


def test_transformers_config_survives_json(transformers: SimpleNamespace) -> None:
    config = transformers.config(group_size=64, skip=("a", "b"))
    again = transformers.config(**json.loads(json.dumps(vars(config))))
    assert vars(again) == vars(config)
    assert vars(transformers.config()) == {
        "quant_method": "wlib",
        "group_size": 128,
        "skip": ["lm_head"],
        "clip_search": True,
    }


def test_transformers_clip_search_is_the_default(transformers: SimpleNamespace) -> None:
    model = Small()
    searched = Int4Fp8Linear.from_linear(model.first, 32, clip_search=True)
    quantizer = transformers.quantizer(transformers.config(group_size=32), pre_quantized=False)
    quantizer._process_model_after_weight_loading(model)
    assert torch.equal(model.first.packed_weight, searched.packed_weight)


def test_transformers_refusals(transformers: SimpleNamespace) -> None:
    quantizer = transformers.quantizer(transformers.config(), pre_quantized=True)
    with pytest.raises(ValueError, match=r"got a checkpoint of wlib: wlib\.formats\.load_model"):
        quantizer.validate_environment()
    model = Small()
    model.second.to("meta")
    with pytest.raises(ValueError, match=r"in memory, got second\.weight offloaded"):
        quantizer._process_model_after_weight_loading(model)
    assert type(model.first) is nn.Linear


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "vllm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install transformers"):
        load("transformers_quantizer")
    with pytest.raises(ImportError, match="pip install vllm"):
        load("vllm_quantization")


def test_in_transformers_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 100}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    plain.save_pretrained(tmp_path)
    config = load("transformers_quantizer").WlibConfig(group_size=32, clip_search=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        got = model(ids).logits
        assert not torch.equal(got, plain(ids).logits)
        names = wlib.nn.replace_linear(plain, Int4Fp8Linear, ["lm_head"], group_size=32)
        assert torch.equal(got, plain(ids).logits)
    assert len(names) == 14
    assert all(isinstance(model.get_submodule(name), Int4Fp8Linear) for name in names)
    assert type(model.lm_head) is nn.Linear
    with pytest.raises(ValueError, match="wlib"):
        model.save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "wlib"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="load_model"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


# vLLM


class LinearBase(nn.Module):
    """A layer of one rank: rows of several fused layers, or columns of one that is divided."""

    def __init__(self, method: Any, k: int, rows: list[int], rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.method, self.rank, self.rows = method, rank, rows
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)  # as vLLM does while it builds a model
        try:
            loader = {"weight_loader": self.weight_loader}
            method.create_weights(self, k // world, rows, k, sum(rows), torch.bfloat16, **loader)
        finally:
            torch.set_default_dtype(default)

    def weight_loader(self, param: nn.Parameter, loaded: Tensor, shard: int = 0) -> None:
        start = sum(self.rows[:shard])
        part = param.data.narrow(param.output_dim, start, self.rows[shard])
        if (dim := getattr(param, "input_dim", None)) is not None:
            size = param.shape[dim]
            loaded = loaded.narrow(dim, self.rank * size, size)
        assert part.shape == loaded.shape
        assert part.dtype == loaded.dtype
        part.copy_(loaded)

    def fill(self, *shards: dict[str, Tensor]) -> LinearBase:
        params = dict(self.named_parameters())
        for shard, tensors in enumerate(shards):
            for name, tensor in tensors.items():
                params[name].weight_loader(params[name], tensor, shard)
        self.method.process_weights_after_loading(self)
        return self


class QuantizationConfig:
    def __init__(self) -> None:
        self.packed_modules_mapping: dict[str, list[str]] = {}


class LinearMethodBase:
    pass


class UnquantizedLinearMethod(LinearMethodBase):
    pass


@pytest.fixture
def vllm_config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config class that the example registers."""
    registry = Registry()
    linear = (LinearBase, LinearMethodBase, UnquantizedLinearMethod)

    def set_weight_attrs(weight: Tensor, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            assert not hasattr(weight, name)
            setattr(weight, name, value)

    layers = "vllm.model_executor.layers"
    stand_in(monkeypatch, f"{layers}.linear", **{cls.__name__: cls for cls in linear})
    register = {"register_quantization_config": registry.register}
    stand_in(monkeypatch, f"{layers}.quantization", **register)
    base = {"QuantizationConfig": QuantizationConfig}
    stand_in(monkeypatch, f"{layers}.quantization.base_config", **base)
    stand_in(monkeypatch, "vllm.model_executor.utils", set_weight_attrs=set_weight_attrs)
    example = load("vllm_quantization")
    example.register()
    monkeypatch.setitem(sys.modules, example.__name__, example)  # torch.compile looks there
    return registry["wlib"]


def method_of(config: Any, prefix: str = "model.layers.0.self_attn.qkv_proj") -> Any:
    return config.get_quant_method(LinearBase.__new__(LinearBase), prefix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vllm_quantises_16_bit_weights(vllm_config: Any, dtype: torch.dtype) -> None:
    method = method_of(vllm_config(group_size=32))
    weights = [random(rows, 64, seed=rows).bfloat16() for rows in (40, 8, 16)]
    layer = LinearBase(method, 64, [40, 8, 16]).fill(*({"weight": w} for w in weights))
    assert [name for name, _ in layer.named_parameters()] == ["packed_weight"]
    x, bias = random(3, 64).to(dtype), random(64).to(dtype)
    fused = wlib.Int4Weight.quantize(torch.cat(weights), 32, clip_search=True)
    assert torch.equal(method.apply(layer, x), Int4Fp8Linear.from_weight(fused)(x))
    expected = Int4Fp8Linear.from_weight(fused, bias)(x)
    assert torch.equal(method.apply(layer, x, bias), expected)
    assert expected.dtype == dtype


def test_vllm_can_compile_a_layer(vllm_config: Any) -> None:
    method = method_of(vllm_config(group_size=32))
    layer = LinearBase(method, 64, [8]).fill({"weight": random(8, 64).bfloat16()})
    x = random(3, 64).bfloat16()
    compiled = torch.compile(lambda x: method.apply(layer, x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), method.apply(layer, x))


def stored(weight: wlib.Int4Weight) -> dict[str, Tensor]:
    """The tensors of wlib's own format."""
    return {name: tensor for name, tensor in vars(weight).items() if tensor is not None}


def checkpoint_weight(rows: int, zero_point: bool, channel_scale: bool) -> wlib.Int4Weight:
    weight = wlib.Int4Weight.quantize(random(rows, 128, seed=rows), 32)
    zeros = random(rows, 4, seed=1).round() if zero_point else None
    factor = random(rows, seed=2).exp() if channel_scale else None
    return wlib.Int4Weight(weight.codes, weight.group_scale, zeros, factor)


@pytest.mark.parametrize("zero_point", [False, True])
def test_vllm_loads_fused_layers_of_a_checkpoint(vllm_config: Any, zero_point: bool) -> None:
    values = {"quant_method": "wlib", "format_version": 1, "group_size": 32}
    values |= {"has_zero_point": True} if zero_point else {}
    method = method_of(vllm_config.from_config(values))
    # Only one of them has channel scales.
    gate, up = (checkpoint_weight(rows, zero_point, rows == 24) for rows in (24, 40))
    layer = LinearBase(method, 128, [24, 40]).fill(stored(gate), stored(up))
    x = random(5, 128).bfloat16()
    expected = torch.cat([Int4Fp8Linear.from_weight(w)(x) for w in (gate, up)], dim=-1)
    assert torch.equal(method.apply(layer, x), expected)
    assert layer.packed_fields == (64, 128, 32, zero_point, True)


@pytest.mark.parametrize("rank", [0, 1])
def test_vllm_divides_columns_between_groups(vllm_config: Any, rank: int) -> None:
    values = {"format_version": 1, "group_size": 32, "has_zero_point": True}
    method = method_of(vllm_config.from_config(values))
    weight = checkpoint_weight(24, True, True)
    layer = LinearBase(method, 128, [24], rank, 2).fill(stored(weight))
    x = random(5, 64).bfloat16()
    part = Int4Fp8Linear.from_weight(weight.shard(1, rank, 2))
    assert torch.equal(method.apply(layer, x), part(x))


def test_vllm_skips_layers(vllm_config: Any) -> None:
    config = vllm_config.from_config({"quant_method": "wlib", "skip": ["qkv_proj"]})
    assert isinstance(method_of(config), UnquantizedLinearMethod)
    assert not isinstance(
        method_of(config, "model.layers.0.mlp.down_proj"), UnquantizedLinearMethod
    )
    assert config.get_quant_method(nn.Embedding(1, 1), "model.embed_tokens") is None
    assert (config.get_name(), config.get_min_capability()) == ("wlib", 90)
    assert config.packed_modules_mapping == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 4}, "only group_size, skip, has_zero_point, got bits"),
        ({"format_version": 2, "group_size": 32}, "format_version 1, got 2"),
        ({"format_version": 1}, "expected the checkpoint's group_size, got none"),
    ],
)
def test_vllm_refuses_configs(vllm_config: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vllm_config.from_config({"quant_method": "wlib"} | values)


def test_vllm_refuses_groups_that_a_rank_would_cut(vllm_config: Any) -> None:
    with pytest.raises(ValueError, match="dividing k=64"):
        LinearBase(method_of(vllm_config(group_size=128)), 128, [8], world=2)


# kernels of Hugging Face


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "wlib"
    hf_kernels.lay_out(out)
    return out


def test_variants_follow_from_the_library() -> None:
    assert hf_kernels.backends("none") == {"cpu": {"type": "cpu"}}
    found = hf_kernels.backends("sm_90a sm_100a sm_120f (nvcc 13.0.88)")
    assert list(found) == ["cpu", "cu130"]
    assert found["cu130"] == {"type": "cuda", "archs": ["9.0a", "10.0a", "12.0f"]}


def test_the_layout(repository: Path) -> None:
    folders = sorted((repository / "build").iterdir())
    names = [folder.name for folder in folders]
    assert all(name.startswith("torch-stable-abi211-c") for name in names)
    assert "torch-stable-abi211-cpu-x86_64-linux" in names
    assert len(names) == 1 + ("sm_90a" in wlib.info().cuda_kernels)
    for folder in folders:
        metadata = json.loads((folder / "metadata.json").read_text())
        assert (metadata["id"], metadata["name"], metadata["version"]) == ("wlib", "wlib", 0)
        assert metadata["backend"]["type"] == ("cpu" if "-cpu-" in folder.name else "cuda")
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        digests = metadata["digest"]["files"]
        assert digests.keys() == files - {"metadata.json"}
        digest = hashlib.sha256((folder / "_C.so").read_bytes()).digest()
        assert base64.b64decode(digests["_C.so"]) == digest
        assert {"__init__.py", "wlib/__init__.py", "nn/int4fp8.py"} <= files
        assert not [name for name in files if "pycache" in name or "bench" in name]


def test_a_kernel_imports_only_torch_and_itself(repository: Path) -> None:
    folder = next((repository / "build").glob("*-cpu-*"))
    allowed = {*sys.stdlib_module_names, "torch"}
    for path in folder.rglob("*.py"):
        # At import; what a function imports is an extra that its caller asked for.
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        hf_kernels.lay_out(tmp_path)


USE = """
import torch
w = kernel.Int4Weight.quantize(-torch.ones(8, 64), 32).pack()
xq, xs = kernel.fp8_quantize(torch.ones(2, 64))
assert (kernel.int4fp8_gemm(xq, w, xs) == -64).all()
import wlib, wlib.formats
assert wlib.nn.Int4Fp8Linear is kernel.nn.Int4Fp8Linear
print(kernel.info().library)
"""
# As `kernels` does it, in importer.py of its version 0.17.2.
AS_KERNELS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("wlib", sys.argv[1] + "/__init__.py")
kernel = sys.modules["wlib"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
# As older versions do it, under a name of their own.
AS_OLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("wlib_1a2b", sys.argv[1] + "/wlib/__init__.py")
kernel = sys.modules["wlib_1a2b"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
AS_A_PACKAGE = "import sys; sys.path.insert(0, sys.argv[1]); import wlib as kernel"
IN_KERNELS = """
import sys
from pathlib import Path
from kernels import get_local_kernel
kernel = get_local_kernel(Path(sys.argv[1]).parents[1], backend="cpu")
"""


@pytest.mark.parametrize(
    "how",
    [AS_KERNELS, AS_OLDER, AS_A_PACKAGE, IN_KERNELS],
    ids=["as kernels", "as older kernels", "as a package", "in kernels"],
)
def test_the_layout_works_in_a_fresh_process(repository: Path, how: str, tmp_path: Path) -> None:
    if how == IN_KERNELS:
        pytest.importorskip("kernels")
    folder = next((repository / "build").glob("*-cpu-*"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("WLIB_LIBRARY", None)
    source = Path(wlib.__file__).parents[1]
    paths = environment.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in paths if path and Path(path).resolve() != source.resolve()]
    environment["PYTHONPATH"] = os.pathsep.join(kept)
    command = [sys.executable, "-c", how + "\n" + USE, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "_C.so")
