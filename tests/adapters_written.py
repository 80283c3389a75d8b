"""Adapter files of every kind, written from the formulas of the public implementations."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

RANK, ALPHA = 4, 6.0  # alpha is not the rank, in every file


class Net(nn.Module):
    """One module of each kind that adapters change."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.block = nn.ModuleDict({"up": nn.Linear(16, 24), "down": nn.Linear(24, 8)})
        self.conv = nn.Conv2d(8, 12, 3, groups=2)  # weight [12, 4, 3, 3]
        self.line = nn.Conv1d(4, 6, 5)


@dataclass(frozen=True)
class Case:
    """A module's tensors by local name, and what they add to its weight, without alpha / rank."""

    module: str
    tensors: dict[str, Tensor]
    delta: Tensor


def draw(*shape: int) -> Tensor:
    """Small integers, so that float64 sums are exact and half precision holds the operands."""
    return torch.randint(-3, 4, shape).float()


def _wide(tensors: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [tensors[name].double() for name in names]


def lora(module: str, shape: tuple[int, ...], names: tuple[str, str], r: int = RANK) -> Case:
    """PEFT's get_delta_weight, sd-scripts's merge: up [out, r] @ down [r, in * kernel]."""
    out, *rest = shape
    down, up = names
    tensors = {down: draw(r, *rest), up: draw(out, r, *[1] * (len(shape) - 2))}
    a, b = _wide(tensors, down, up)
    return Case(module, tensors, (b.flatten(1) @ a.flatten(1)).view(shape))


def lora_embedding(module: str, shape: tuple[int, ...]) -> Case:
    """PEFT's Embedding: (B @ A) transposed."""
    entries, width = shape
    tensors = {"lora_embedding_A": draw(RANK, entries), "lora_embedding_B": draw(width, RANK)}
    a, b = _wide(tensors, *tensors)
    return Case(module, tensors, (b @ a).T)


def locon_tucker(module: str, shape: tuple[int, ...]) -> Case:
    """LyCORIS's LoConModule.make_weight with `tucker`."""
    out, columns, *kernel = shape
    tensors = {
        "lora_mid.weight": draw(RANK, RANK, *kernel),
        "lora_up.weight": draw(out, RANK, *[1 for _ in kernel]),
        "lora_down.weight": draw(RANK, columns, *[1 for _ in kernel]),
    }
    mid, up, down = _wide(tensors, *tensors)
    delta = torch.einsum("ij...,pi,jr->pr...", mid, up.flatten(1), down.flatten(1))
    return Case(module, tensors, delta)


def loha(module: str, shape: tuple[int, ...]) -> Case:
    """HadaWeight: (w1a @ w1b) * (w2a @ w2b)."""
    out, columns = shape[0], torch.Size(shape[1:]).numel()
    tensors = {}
    for i in (1, 2):
        tensors |= {f"hada_w{i}_a": draw(out, RANK), f"hada_w{i}_b": draw(RANK, columns)}
    w1_a, w1_b, w2_a, w2_b = _wide(tensors, *tensors)
    return Case(module, tensors, ((w1_a @ w1_b) * (w2_a @ w2_b)).view(shape))


def loha_tucker(module: str, shape: tuple[int, ...]) -> Case:
    """HadaWeightTucker: "i j k l, j r, i p -> p r k l" of each half."""
    out, columns, *kernel = shape
    tensors, halves = {}, []
    for i in (1, 2):
        own = {
            f"hada_t{i}": draw(RANK, RANK, *kernel),
            f"hada_w{i}_a": draw(RANK, out),
            f"hada_w{i}_b": draw(RANK, columns),
        }
        halves.append(torch.einsum("ij...,ip,jr->pr...", *_wide(own, *own)))
        tensors |= own
    return Case(module, tensors, halves[0] * halves[1])


def lokr(module: str, shape: tuple[int, ...], first: str, second: str) -> Case:
    """make_kron: each factor "whole" or a "product", the second also with a "core"."""
    out, columns, *kernel = shape
    a, b = 2, 4
    tensors: dict[str, Tensor] = {}
    if first == "whole":
        tensors["lokr_w1"] = draw(a, b)
        (w1,) = _wide(tensors, "lokr_w1")
    else:
        tensors |= {"lokr_w1_a": draw(a, RANK), "lokr_w1_b": draw(RANK, b)}
        w1 = torch.matmul(*_wide(tensors, "lokr_w1_a", "lokr_w1_b"))
    small = (out // a, columns // b, *kernel)
    if second == "whole":
        tensors["lokr_w2"] = draw(*small)
        (w2,) = _wide(tensors, "lokr_w2")
    elif second == "product":
        width = torch.Size(small[1:]).numel()
        tensors |= {"lokr_w2_a": draw(small[0], RANK), "lokr_w2_b": draw(RANK, width)}
        w2 = torch.matmul(*_wide(tensors, "lokr_w2_a", "lokr_w2_b")).view(small)
    else:
        core = {
            "lokr_t2": draw(RANK, RANK, *kernel),
            "lokr_w2_a": draw(RANK, small[0]),
            "lokr_w2_b": draw(RANK, small[1]),
        }
        w2 = torch.einsum("ij...,ip,jr->pr...", *_wide(core, *core))
        tensors |= core
    ones = w1.view(a, b, *[1 for _ in kernel])
    return Case(module, tensors, torch.kron(ones, w2.contiguous()).view(shape))


def flora(module: str, shape: tuple[int, ...]) -> Case:
    """FLoRALayer.forward: tensordots along every dimension, [in, out, ...] turned at the end."""
    out, columns, *kernel = shape
    sizes = (columns, out, *kernel)
    ranks = (3, 2, *[2 for _ in kernel])
    tensors = {"flora_layer.param_G": draw(*ranks)}
    delta = tensors["flora_layer.param_G"].double()
    for i, (size, rank) in enumerate(zip(sizes, ranks, strict=True)):
        tensors[f"flora_layer.param_{i}"] = factor = draw(size, rank)
        delta = torch.tensordot(delta, factor.double(), dims=[[0], [1]])
    return Case(module, tensors, delta.transpose(0, 1))


# As PEFT and as sd-scripts name them; LoKr of two products, and with a core.
PEFT_LORA = functools.partial(lora, names=("lora_A.weight", "lora_B.weight"))
KOHYA_LORA = functools.partial(lora, names=("lora_down.weight", "lora_up.weight"))
KRON = functools.partial(lokr, first="product", second="product")
CORE = functools.partial(lokr, first="product", second="core")

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (10, 16),
    "block.up": (24, 16),
    "block.down": (8, 24),
    "conv": (12, 4, 3, 3),
    "line": (6, 4, 5),
}
MATRICES = ("block.up", "block.down")
Make = Callable[[str, tuple[int, ...]], Case]


def cases(make: Make, *modules: str) -> list[Case]:
    return [make(module, SHAPES[module]) for module in modules]


def save_peft(folder: Path, cases: list[Case], kind: str, **config: Any) -> Path:
    """A folder as PeftModel.save_pretrained leaves it."""
    folder.mkdir(exist_ok=True)
    named = {
        f"base_model.model.{case.module}.{field}": tensor
        for case in cases
        for field, tensor in case.tensors.items()
    }
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    own = {"peft_type": kind, "r": RANK, alpha: ALPHA, "bias": "none", "peft_version": "0.19.0",
           "target_modules": ["up"], "modules_to_save": None, "rank_pattern": {},
           "alpha_pattern": {}, "use_dora": False, "megatron_core": "megatron.core"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(own | config))
    return folder


def save_file(path: Path, cases: list[Case], alpha: float | None = None) -> Path:
    """One file, as LyCORIS and FLoRA have them."""
    named = {f"{c.module}.{field}": tensor for c in cases for field, tensor in c.tensors.items()}
    if alpha is not None:
        named |= {f"{case.module}.alpha": torch.tensor(alpha) for case in cases}
    safetensors.torch.save_file(named, path)
    return path
