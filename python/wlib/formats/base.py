"""What every checkpoint format defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import refuse
from .config import Config
from .layer import WHERE, Int4Layer, LayerTensors


@dataclass(frozen=True)
class LayerKind:
    """What a quantization_config says of a layer; a group_size of -1 is the whole row."""

    group_size: int
    has_zero_point: bool
    is_permuted: bool

    @classmethod
    def of(cls, layer: Int4Layer) -> LayerKind:
        """The kind of a layer."""
        weight = layer.weight
        size = -1 if weight.group_size == weight.k else weight.group_size
        return cls(size, weight.zero_point is not None, layer.k_permutation is not None)


class Format(ABC):
    """One way to store INT4 layers.

    Attributes:
        name: what the command line calls it.
        key: local name of the tensor that every layer, and nothing else, has.
        fields: local names of all tensors a layer may have.
        metadata: what the header of each file says.
    """

    name: ClassVar[str]
    key: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    metadata: ClassVar[Mapping[str, str]] = {"format": "pt"}

    @classmethod
    @abstractmethod
    def from_config(cls, config: Config) -> Format:
        """The format as this config describes it; ValueError naming what wlib cannot read."""

    @abstractmethod
    def read(self, tensors: LayerTensors) -> Int4Layer:
        """The layer these tensors stand for; TypeError or ValueError naming what does not fit."""

    @classmethod
    @abstractmethod
    def write(cls, layer: Int4Layer, name: str) -> tuple[dict[str, Tensor], float]:
        """Tensors by local name, bias apart, and the largest relative error of a scale.

        Raises:
            ValueError: the format cannot hold the layer.
        """

    @classmethod
    @abstractmethod
    def write_config(cls, kinds: set[LayerKind], dense: list[str]) -> dict[str, Any]:
        """The quantization_config of a checkpoint.

        Args:
            kinds: what its layers are.
            dense: names of the modules with a weight matrix that is not quantised.

        Raises:
            ValueError: one config cannot speak of all these kinds.
        """


def single_kind(name: str, kinds: set[LayerKind]) -> LayerKind:
    """The kind of all layers, for formats whose config speaks of all at once.

    Raises:
        ValueError: the layers differ in group size or in having zero points.
    """
    permuted = any(kind.is_permuted for kind in kinds)
    shared = {(kind.group_size, kind.has_zero_point) for kind in kinds}
    if len(shared) != 1:
        expected = f"one group size, with or without zero points, in all layers for {name}"
        refuse(WHERE, expected, sorted(shared), "format")
    (size, has_zero_point) = shared.pop()
    return LayerKind(size, has_zero_point, permuted)


def refuse_permutation(layer: Int4Layer, format_name: str, name: str) -> None:
    """ValueError for formats whose groups are always neighbouring columns."""
    if layer.k_permutation is not None:
        expected = f"columns in order, as {format_name} stores them"
        refuse(WHERE, expected, "a k_permutation", name)
