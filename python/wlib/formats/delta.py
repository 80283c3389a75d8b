"""What an adapter adds to one weight, one class per formula, read from tensors of known names."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .. import rebuild
from .layer import FLOATS, LayerTensors

_FLORA = "flora_layer.param_"
_FLORA_DIMS = 5  # of the largest weight, that of a convolution in space
ScaleOf = Callable[[int | None], float]  # from the rank, None where no factor has one


@dataclass(frozen=True, eq=False)
class Delta(ABC):
    """A tensor of the shape of a weight, scale included.

    Attributes:
        scale: the factor of the formula.
    """

    scale: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """[out, in, ...], or [out, in * kernel] where the operands do not say more."""

    def to(self, device: torch.device) -> Delta:
        """The delta on a device."""
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: v.to(device) for name, v in own.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


class RebuildDelta(Delta):
    """A delta that `wlib.rebuild.merge_many` adds."""

    @abstractmethod
    def call(self, w0: Tensor | None, scale: float = 1.0) -> functools.partial[Tensor]:
        """The call, not yet made, of w0 + scale * self."""


@dataclass(frozen=True, eq=False)
class LoraDelta(RebuildDelta):
    """scale * lora_B @ lora_A: `wlib.rebuild.lora`.

    Attributes:
        lora_A: [r, in, ...].
        lora_B: [out, r, ...].
        mid: None or a core [r, r, kh, kw].
        transposed: the operands stand for a weight [in, out], as Conv1D of transformers has it.
    """

    lora_A: Tensor
    lora_B: Tensor
    mid: Tensor | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, ...]."""
        kernel = self.lora_A.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.lora_B.shape[0], self.lora_A.shape[1], *kernel)

    def call(self, w0: Tensor | None, scale: float = 1.0) -> functools.partial[Tensor]:
        """The call, not yet made, of w0 + scale * self."""
        operands = (w0, self.lora_A, self.lora_B)
        return functools.partial(rebuild.lora, *operands, self.scale * scale, self.mid)

    def transpose(self) -> LoraDelta:
        """The delta of a weight [in, out]; convolutions are never stored so and stay."""
        if self.lora_A.dim() > 2:
            return self
        return replace(self, lora_A=self.lora_B.T, lora_B=self.lora_A.T, transposed=True)

    @classmethod
    def read_peft(cls, tensors: LayerTensors, scale_of: ScaleOf) -> LoraDelta:
        """From PEFT's `lora_A.weight` and `lora_B.weight`."""
        return cls._read(tensors, "lora_A.weight", "lora_B.weight", None, scale_of)

    @classmethod
    def read_embedding(cls, tensors: LayerTensors, scale_of: ScaleOf) -> LoraDelta:
        """From PEFT's `lora_embedding_A` and `lora_embedding_B`, whose product is transposed."""
        a = _matrix(tensors, "lora_embedding_A", None, None)
        b = _matrix(tensors, "lora_embedding_B", None, len(a))
        return cls(scale_of(len(a)), b.T, a.T)

    @classmethod
    def read_lycoris(cls, tensors: LayerTensors, scale_of: ScaleOf) -> LoraDelta:
        """From `lora_down.weight`, `lora_up.weight` and, for a Tucker form, `lora_mid.weight`."""
        names = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
        return cls._read(tensors, *names, scale_of)

    @classmethod
    def _read(
        cls, tensors: LayerTensors, down: str, up: str, middle: str | None, scale_of: ScaleOf
    ) -> LoraDelta:
        a = tensors.take(down, FLOATS, None)
        if a.dim() < 2 or 0 in a.shape:
            tensors.refuse("at least a matrix", list(a.shape), down)
        ones = [1] * (a.dim() - 2)
        b = tensors.take(up, FLOATS, (None, len(a), *ones))
        mid = _core(tensors, middle, len(a)) if middle else None
        if mid is not None:
            tensors.take(down, FLOATS, (len(a), None, *ones))
        return cls(scale_of(len(a)), a, b, mid)


@dataclass(frozen=True, eq=False)
class LohaDelta(RebuildDelta):
    """scale * (w1_a @ w1_b) o (w2_a @ w2_b): `wlib.rebuild.loha`, with its layouts."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, ...] with cores, else [out, in * kernel]."""
        if self.t1 is None:
            return (self.w1_a.shape[0], self.w1_b.shape[1])
        return (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])

    def call(self, w0: Tensor | None, scale: float = 1.0) -> functools.partial[Tensor]:
        """The call, not yet made, of w0 + scale * self."""
        operands = (self.w1_a, self.w1_b, self.w2_a, self.w2_b, self.t1, self.t2)
        return functools.partial(rebuild.loha, w0, *operands, self.scale * scale)

    @classmethod
    def read(cls, tensors: LayerTensors, scale_of: ScaleOf) -> LohaDelta:
        """From `hada_w1_a` ... `hada_t2`, the names that LyCORIS and PEFT share."""
        t1, t2 = (tensors.find(f"hada_t{i}", FLOATS, None) for i in (1, 2))
        if t1 is not None or t2 is not None:
            tensors.take("hada_t1", FLOATS, None if t2 is None else t2.shape)
            tensors.take("hada_t2", FLOATS, None if t1 is None else t1.shape)
        w1_b = _matrix(tensors, "hada_w1_b", None, None)
        rank, columns = w1_b.shape
        w2_b = _matrix(tensors, "hada_w2_b", rank, columns)
        if _core(tensors, "hada_t1", rank) is None:
            w1_a = _matrix(tensors, "hada_w1_a", None, rank)
            w2_a = _matrix(tensors, "hada_w2_a", w1_a.shape[0], rank)
        else:
            w1_a = _matrix(tensors, "hada_w1_a", rank, None)
            w2_a = _matrix(tensors, "hada_w2_a", rank, w1_a.shape[1])
        return cls(scale_of(rank), w1_a, w1_b, w2_a, w2_b, t1, t2)


@dataclass(frozen=True, eq=False)
class LokrDelta(RebuildDelta):
    """scale * kron(w1, w2): `wlib.rebuild.lokr`, with its layouts."""

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, ...], or [out, in * kernel] if w2 is a product of two matrices."""
        (a, b), (c, d, *kernel) = (
            _shape(self.w1, self.w1_a, self.w1_b, None),
            _shape(self.w2, self.w2_a, self.w2_b, self.t2),
        )
        return (a * c, b * d, *kernel)

    def call(self, w0: Tensor | None, scale: float = 1.0) -> functools.partial[Tensor]:
        """The call, not yet made, of w0 + scale * self."""
        first, second = (self.w1, self.w1_a, self.w1_b), (self.w2, self.w2_a, self.w2_b, self.t2)
        return functools.partial(rebuild.lokr, w0, *first, *second, self.scale * scale)

    @classmethod
    def read(cls, tensors: LayerTensors, scale_of: ScaleOf) -> LokrDelta:
        """From `lokr_w1` ... `lokr_t2`, the names that LyCORIS and PEFT share."""
        w1 = tensors.find("lokr_w1", FLOATS, (None, None))
        w2 = tensors.find("lokr_w2", FLOATS, None)
        rank = None
        operands: dict[str, Tensor | None] = {"w1": w1, "w2": w2}
        for name, whole in (("w1", w1), ("w2", w2)):
            parts = [f"lokr_{name}_a", f"lokr_{name}_b"] + ["lokr_t2"] * (name == "w2")
            if whole is not None:
                if whole.dim() < 2 or 0 in whole.shape:
                    tensors.refuse("at least a matrix", list(whole.shape), f"lokr_{name}")
                for field in parts:
                    if tensors.find(field, FLOATS, None) is not None:
                        tensors.refuse(f"none beside lokr_{name}", "one", field)
                continue
            b = _matrix(tensors, parts[1], rank, None)
            rank = b.shape[0]
            core = _core(tensors, "lokr_t2", rank) if name == "w2" else None
            sizes = (None, rank) if core is None else (rank, None)
            operands |= {f"{name}_a": _matrix(tensors, parts[0], *sizes), f"{name}_b": b}
            operands |= {} if core is None else {"t2": core}
        return cls(scale_of(rank), **operands)


@dataclass(frozen=True, eq=False)
class TuckerDelta(Delta):
    """scale * a core times a factor along every dimension: `wlib.tucker_merge`, in_first.

    Attributes:
        core: [r_in, r_out, ...].
        factors: [in, r_in], [out, r_out], ...
    """

    core: Tensor
    factors: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, ...]."""
        first, second, *others = (factor.shape[0] for factor in self.factors)
        return (second, first, *others)

    def to(self, device: torch.device) -> TuckerDelta:
        """The delta on a device."""
        factors = tuple(factor.to(device) for factor in self.factors)
        return replace(self, core=self.core.to(device), factors=factors)

    @classmethod
    def read(cls, tensors: LayerTensors, scale_of: ScaleOf) -> TuckerDelta:
        """From FLoRA's `flora_layer.param_G`, `flora_layer.param_0`, ..."""
        core = tensors.take(f"{_FLORA}G", FLOATS, None)
        if core.dim() < 2 or 0 in core.shape:
            tensors.refuse("a core of at least 2 dimensions", list(core.shape), f"{_FLORA}G")
        for field in (f"{_FLORA}{i}" for i in range(core.dim(), _FLORA_DIMS)):
            if tensors.find(field, FLOATS, None) is not None:
                tensors.refuse(f"{core.dim()} factors", "more", field)
        sizes = enumerate(core.shape)
        factors = tuple(_matrix(tensors, f"{_FLORA}{i}", None, rank) for i, rank in sizes)
        return cls(scale_of(None), core, factors)


def _matrix(tensors: LayerTensors, field: str, rows: int | None, columns: int | None) -> Tensor:
    tensor = tensors.take(field, FLOATS, (rows, columns))
    if 0 in tensor.shape:
        tensors.refuse("a matrix that is not empty", list(tensor.shape), field)
    return tensor


def _core(tensors: LayerTensors, field: str, rank: int) -> Tensor | None:
    """[r, r, ...] or None."""
    core = tensors.find(field, FLOATS, None)
    if core is not None and (core.dim() < 3 or core.shape[:2] != (rank, rank) or not core.numel()):
        tensors.refuse(f"shape [{rank}, {rank}, *, ...]", list(core.shape), field)
    return core


def _shape(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> tuple[int, ...]:
    if whole is not None:
        return tuple(whole.shape)
    assert a is not None
    assert b is not None
    if core is None:
        return (a.shape[0], *b.shape[1:])
    return (a.shape[1], b.shape[1], *core.shape[2:])


@dataclass(frozen=True)
class Layout:
    """Names under which the tensors of one module are stored."""

    name: str
    fields: frozenset[str]
    read: Callable[[LayerTensors, ScaleOf], Delta]


LORA = Layout("LoRA", frozenset({"lora_A.weight", "lora_B.weight"}), LoraDelta.read_peft)
EMBEDDING = Layout(
    "LoRA of an embedding",
    frozenset({"lora_embedding_A", "lora_embedding_B"}),
    LoraDelta.read_embedding,
)
LOCON = Layout(
    "LoCon",
    frozenset({"lora_down.weight", "lora_up.weight", "lora_mid.weight"}),
    LoraDelta.read_lycoris,
)
LOHA = Layout(
    "LoHa",
    frozenset(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    LohaDelta.read,
)
LOKR = Layout(
    "LoKr",
    frozenset(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    LokrDelta.read,
)
FLORA = Layout(
    "FLoRA",
    frozenset(f"{_FLORA}{name}" for name in ("G", *range(_FLORA_DIMS))),
    TuckerDelta.read,
)
LAYOUTS = (LORA, EMBEDDING, LOCON, LOHA, LOKR, FLORA)
