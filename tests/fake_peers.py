"""Stand-ins for the libraries that the benchmark compares with, computing on the CPU in float64.

Names, arguments and layouts are those of the packages that bench/README.md names; what they do
inside (shuffled weights, graphs that are built before they run) is imitated as far as an adapter
sees it.
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
SCHEMAS = (
    "preshuffle_i4(Tensor WQ, Tensor w_scale) -> (Tensor, Tensor)",
    "f8i4bf16_shuffled(Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, "
    "Tensor w_scale_group) -> Tensor",
    "f8i4bf16_shuffled_grouped(Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, "
    "Tensor w_scale_group, Tensor M_sizes) -> Tensor",
)


def install(monkeypatch: Any, tamper: Callable[[Tensor], Tensor] = lambda y: y) -> None:
    """Make every stand-in importable; `tamper` changes what each of them computes."""
    modules = {
        "fbgemm_gpu.experimental.gen_ai.quantize": _fbgemm(monkeypatch, tamper),
        "humming.layer": {"HummingLayer": HummingLayer},
        "humming.utils.weight": {"dequantize_weight": _humming_dequantize},
        "humming.forward": {
            "may_quant_input": lambda config, inputs: _rows_to_fp8(inputs),
            "humming_forward": lambda *args, **kw: tamper(_humming_forward(*args, **kw)),
        },
        "cudnn": _cudnn(tamper),
        "flashinfer.prefill": {"single_prefill_with_kv_cache": _flashinfer(tamper)},
        "torchao.float8": _torchao(tamper),
        "fp_quant.module.triton.mxfp4": {"mxfp4_forward_kernel_wrapper": _fp_quant(tamper)},
        "lycoris.kernels.autograd.locon": {"locon_diff_weight": _locon(tamper)},
        "lycoris.kernels.autograd.loha": {"loha_diff_weight": _loha(tamper)},
    }
    for name, content in modules.items():
        parts = name.split(".")
        for length in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:length]), ModuleType(parts[0]))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def _rows_to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1).float() / 448
    return (x / scale[:, None]).to(E4M3), scale


def _to_int4(w: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """[N, K] -> codes int8 [N, K] and float32 scales [N, K / group]."""
    groups = w.float().unflatten(1, (-1, group_size))
    scale = groups.abs().amax(2) / 8
    codes = (groups / scale[..., None]).round().clamp(-8, 7)
    return codes.flatten(1).to(torch.int8), scale


def _unpack(packed: Tensor) -> Tensor:
    """int8 [..., K / 2] -> [..., K] float64, the even columns from the low nibbles."""
    low, high = (packed << 4) >> 4, packed >> 4
    return torch.stack([low, high], -1).flatten(-2).double()


def _fbgemm(monkeypatch: Any, tamper: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    def int4_row_quantize(x: Tensor, group_size: int = 128) -> tuple[Tensor, Tensor]:
        codes, scale = _to_int4(x, group_size)
        return codes, scale.t().contiguous()

    def shuffled(x: Tensor, w: Tensor, x_scale: Tensor, w_scale: Tensor, group: Tensor) -> Tensor:
        assert x.dtype == group.dtype == E4M3
        assert group.shape[1] == 8
        codes = _unpack(w.flip(0))
        scale = group[:, 0].double().t().repeat_interleave(codes.shape[1] // len(group), 1)
        weight = codes * scale * w_scale.double()[:, None]
        return tamper((x.double() * x_scale.double()[:, None]) @ weight.t()).bfloat16()

    def grouped(x: Tensor, w: Tensor, x_scale: Tensor, *rest: Tensor) -> Tensor:
        *scales, counts = rest
        assert counts.dtype == torch.int32
        parts = (t.split(counts.tolist()) for t in (x, x_scale))
        weights = zip(w, *scales, strict=True)
        return torch.cat([
            shuffled(xe, we, xse, *scale)
            for xe, xse, (we, *scale) in zip(*parts, weights, strict=True)
        ])  # fmt: skip

    library = torch.library.Library("fbgemm", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    shuffle = lambda w, s: (w.flip(0), s[:, None].expand(-1, 8, -1).contiguous())  # noqa: E731
    for name, function in zip(
        ("preshuffle_i4", "f8i4bf16_shuffled", "f8i4bf16_shuffled_grouped"),
        (shuffle, shuffled, grouped),
        strict=True,
    ):
        library.impl(name, function, "CPU")
    # Its ops are there as long as it is, the length of a test.
    monkeypatch.setattr(sys.modules[__name__], "_LIBRARY", library)
    return {
        "int4_row_quantize": int4_row_quantize,
        "pack_int4": lambda x: (x[:, 1::2] << 4) | (x[:, ::2] & 0xF),
        "quantize_fp8_row": _rows_to_fp8,
    }


_LIBRARY = None


class HummingLayer(nn.Module):
    """`weight` and `weight_scale` are in a layout of its own after `transform`."""

    def __init__(
        self,
        shape_n: int,
        shape_k: int,
        weight_config: dict[str, Any],
        input_config: dict[str, Any],
        torch_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        assert weight_config["dtype"] == "int4"
        assert input_config["dtype"] == "float8e4m3"
        assert torch_dtype == torch.bfloat16
        self.group_size = weight_config["group_size"]
        self.humming_config: Any = None
        self.weight_schema = SimpleNamespace(b_dtype="uint4")
        self.register_buffer("locks", torch.zeros(2048, dtype=torch.int32))

    def load_from_unquantized(self, tensor: Tensor) -> None:
        codes, scale = _to_int4(tensor, self.group_size)
        self.weight = nn.Parameter(codes.int() + 8, requires_grad=False)
        self.weight_scale = nn.Parameter(scale.bfloat16(), requires_grad=False)

    def transform(self) -> None:
        for part in (self.weight, self.weight_scale):
            part.data = part.data.flip(0)
        self.humming_config = SimpleNamespace(transformed=True)


def _humming_dequantize(
    weight: Tensor, weight_scale: Tensor, zero_point: None, scale_2: None, dtype: str, packed: bool
) -> Tensor:
    assert (zero_point, scale_2, dtype, packed) == (None, None, "uint4", True)
    return (weight - 8) * weight_scale.float().repeat_interleave(
        weight.shape[1] // weight_scale.shape[1], 1
    )


def _humming_forward(
    config: Any,
    inputs: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    input_scale: Tensor,
    locks: Tensor,
) -> Tensor:
    assert config.transformed
    assert inputs.dtype == E4M3
    assert locks.dtype == torch.int32
    w = _humming_dequantize(weight.flip(0), weight_scale.flip(0), None, None, "uint4", packed=True)
    return ((inputs.double() * input_scale.double()[:, None]) @ w.double().t()).bfloat16()


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """[H, Q, D] and [Hkv, KV, D] float64 -> [H, Q, D], the mask aligned at the ends."""
    k, v = (t.repeat_interleave(len(q) // len(k), 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * scale
    if causal:
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(2) @ v


def _flashinfer(tamper: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def single_prefill_with_kv_cache(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale_q: Tensor,
        scale_k: Tensor,
        scale_v: Tensor,
        o_dtype: torch.dtype,
        causal: bool,
        backend: str,
    ) -> Tensor:
        assert backend == "fa3"
        held = zip((q, k, v), (scale_q, scale_k, scale_v), strict=True)
        values = [(t.double() * s.double()[:, None]).transpose(0, 1) for t, s in held]
        out = _attention(*values, q.shape[2] ** -0.5, causal)
        return tamper(out).transpose(0, 1).to(o_dtype)

    return single_prefill_with_kv_cache


class CudnnTensor:
    """A name in a graph, with the properties that are set one after the other."""

    def __init__(self, **properties: Any) -> None:
        self.properties = properties

    def __getattr__(self, name: str) -> Callable[[Any], "CudnnTensor"]:
        assert name in ("set_output", "set_dim", "set_stride", "set_data_type")
        return lambda value: self.__dict__["properties"].update({name[4:]: value}) or self


class CudnnGraph:
    """Knows its operation when `build` is called, and runs it on strided views in `execute`."""

    def __init__(
        self, io_data_type: str, intermediate_data_type: str, compute_data_type: str, handle: str
    ) -> None:
        assert (io_data_type, compute_data_type, handle) == ("e4m3", "float", "handle")
        self.built = False

    def tensor(self, dim: list[int], stride: list[int], data_type: str) -> CudnnTensor:
        return CudnnTensor(dim=dim, stride=stride, data_type=data_type)

    def sdpa_fp8(self, *inputs: CudnnTensor, attn_scale: float, use_causal_mask: bool,
                 generate_stats: bool) -> tuple[CudnnTensor | None, ...]:  # fmt: skip
        assert len(inputs) == 9
        assert not generate_stats
        self.inputs, self.out = inputs, CudnnTensor()
        self.options = attn_scale, use_causal_mask
        return self.out, None, CudnnTensor(), CudnnTensor()

    def build(self, heuristics: list[str]) -> None:
        assert self.out.properties["output"]
        assert self.out.properties["data_type"] == "e4m3"
        self.built = True

    def get_workspace_size(self) -> int:
        return 16

    def execute(self, tensors: dict[CudnnTensor, Tensor], workspace: Tensor, handle: str) -> None:
        assert self.built
        assert handle == "handle"
        assert workspace.numel() == 16
        views = [
            tensors[name].as_strided(name.properties["dim"], name.properties["stride"])
            for name in self.inputs
        ]
        q, k, v, q_scale, k_scale, v_scale, p_descale, p_scale, out_scale = views
        assert p_descale * p_scale == 1
        held = zip((q, k, v), (q_scale, k_scale, v_scale), strict=True)
        out = _attention(*(t[0].double() * s[0].double() for t, s in held), *self.options)
        target = tensors[self.out].as_strided(
            self.out.properties["dim"], self.out.properties["stride"]
        )
        target.copy_((self.tamper(out) * out_scale.double()).to(E4M3))

    tamper: Callable[[Tensor], Tensor]


def _cudnn(tamper: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    graph = type("pygraph", (CudnnGraph,), {"tamper": staticmethod(tamper)})
    return {
        "pygraph": graph,
        "create_handle": lambda: "handle",
        "set_stream": lambda handle, stream: None,
        "data_type": SimpleNamespace(FP8_E4M3="e4m3", FLOAT="float"),
        "heur_mode": SimpleNamespace(A="A", FALLBACK="FALLBACK"),
    }


def _torchao(tamper: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    class Float8Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rows = (_rows_to_fp8(t.detach()) for t in (x, self.weight))
            x8, w8 = (codes.float() * scale[:, None] for codes, scale in rows)
            exact = nn.functional.linear(x, self.weight)
            return exact + (tamper(x8 @ w8.t()).to(exact) - exact.detach())

    def convert(module: nn.Linear, config: str) -> nn.Module:
        assert config == "rowwise"
        assert module.bias is None
        return Float8Linear(module.in_features, module.out_features, bias=False, device="meta")

    recipe = SimpleNamespace(from_recipe_name=lambda name: name)
    return {"Float8LinearConfig": recipe, "convert_to_float8_training": convert}


def _fp_quant(tamper: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, None]]:
    def wrapper(x: Tensor, hadamard_matrix: Tensor, quest: bool) -> tuple[Tensor, None]:
        assert not quest
        blocks = x.double().unflatten(1, (-1, len(hadamard_matrix))) @ hadamard_matrix.double()
        blocks = blocks.reshape(-1, 32)
        scale = torch.exp2(blocks.abs().amax(1, keepdim=True).log2().floor() - 2) / 0.75
        grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        nearest = ((blocks / scale).abs()[..., None] - grid).abs().argmin(-1)
        values = grid[nearest] * blocks.sign() * scale
        return tamper(values).reshape_as(x).to(x.dtype), None

    return wrapper


def _locon(tamper: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def locon_diff_weight(
        down: Tensor, up: Tensor, mid: None = None, *, gamma: float, base: Tensor
    ) -> Tensor:
        return tamper(base.double() + gamma * (up.double() @ down.double())).to(base)

    return locon_diff_weight


def _loha(tamper: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def loha_diff_weight(
        w1d: Tensor, w1u: Tensor, w2d: Tensor, w2u: Tensor, *, gamma: float, base: Tensor
    ) -> Tensor:
        delta = (w1u.double() @ w1d.double()) * (w2u.double() @ w2d.double())
        return tamper(base.double() + gamma * delta).to(base)

    return loha_diff_weight
