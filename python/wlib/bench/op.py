"""What is measured: an op at given sizes, and arms, the ways to compute it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from .accuracy import Accuracy

if TYPE_CHECKING:
    from .rows import Row

Tensors = tuple[Tensor, ...]
Sizes = Mapping[str, int]
Operands = TypeVar("Operands")


@dataclass(frozen=True)
class Work:
    """An arm with its operands: `call(*stored)` is timed.

    `stored` is copied and rotated, so that a call finds it outside L2. `inputs` is what a call
    reads besides; with what it returns both make up the bytes of a call. `check` judges what it
    returned.
    """

    call: Callable[..., Tensor | Tensors]
    stored: Tensors
    check: Callable[[Any], Accuracy]
    inputs: Tensors = ()


class Arm(ABC, Generic[Operands]):
    """One way to compute an op. Its name begins with `wlib` if this library does it."""

    name: ClassVar[str]
    dtype: ClassVar[str]  # of the operands, as shown in tables
    # Below it an arm computes something else, and is not timed: of its arithmetic against float64
    # where `check` knows the stored operands, of its formats where it does not.
    least_sqnr_db: ClassVar[float | None] = None

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, a package that is missing say, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return the version of what computes."""
        return torch.__version__

    @abstractmethod
    def prepare(self, operands: Operands) -> Work | None:
        """Convert the operands to what this arm takes; none of it is timed.

        None if the arm cannot solve a problem of this kind.
        """


Figure = Callable[["Row"], float | None]
Where = Callable[[Sizes], bool]


@dataclass(frozen=True)
class Target:
    """A bar for the worst of the points where `where` holds: must reach, and aim. For GPUs."""

    name: str
    must: float
    aim: float
    figure: Figure
    where: Where = lambda sizes: True
    arm: str = "wlib"


def copy_fraction(row: "Row") -> float:
    """Return the rate as a fraction of the copy's."""
    return row.copy_fraction


def against(*arms: str) -> Figure:
    """Return the figure that is the speed-up over the fastest of the arms that begin like these."""

    def figure(row: "Row") -> float | None:
        found = [value for arm, value in row.speedup.items() if arm.startswith(arms)]
        return min(found, default=None)

    return figure


@dataclass(frozen=True)
class Op(Generic[Operands]):
    """An op: the sizes it needs, its operands made of them, its arms."""

    name: str
    sizes: tuple[str, ...]
    operands: Callable[[Sizes, torch.Generator], Operands]
    flops: Callable[[Sizes], int]
    arms: tuple[type[Arm[Operands]], ...]
    targets: tuple[Target, ...] = ()


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return standard normal numbers on the generator's device."""
    values = torch.randn(shape, generator=generator, device=generator.device)
    return values.to(dtype)


def spread(size: int, count: int, like: Tensor) -> Tensor:
    """Return at most `count` indices spread over range(size), first and last included."""
    return torch.linspace(0, size - 1, min(size, count), device=like.device).round().long()


def size_of(tensors: Tensor | Tensors) -> int:
    """Return the bytes of a tensor or of several."""
    several = (tensors,) if isinstance(tensors, Tensor) else tensors
    return sum(tensor.numel() * tensor.element_size() for tensor in several)
