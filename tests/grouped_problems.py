"""Problems of a stack of experts in the simulator: one per expert, tokens one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_problems import Problem, Shape


@dataclasses.dataclass
class GroupedProblem(Problem):
    """What the experts have in common; everything about weights is theirs."""

    experts: list[Problem] = dataclasses.field(default_factory=list)

    def reference(self) -> npt.NDArray[np.float64]:
        return np.concatenate([expert.reference() for expert in self.experts])

    def magnitude(self) -> npt.NDArray[np.float64]:
        return np.concatenate([expert.magnitude() for expert in self.experts])

    def packed(self) -> npt.NDArray[np.uint8]:
        return np.concatenate([expert.packed() for expert in self.experts])


def grouped_problem(
    make: Callable[[np.random.Generator, Shape], Problem],
    rng: np.random.Generator,
    shape: Shape,
    counts: Sequence[int],
    offsets: type[np.integer[Any]] = np.int32,
) -> GroupedProblem:
    """Experts of `counts` tokens, each made by `make`; `shape.m` does not enter."""
    experts = [make(rng, shape._replace(m=count)) for count in counts]
    biased = bool(rng.integers(2))
    for expert in experts:
        expert.bias = rng.integers(-64, 65, shape.n).astype(np.float32) if biased else None
    first = experts[0]
    return GroupedProblem(
        shape._replace(m=sum(counts)),
        x=np.concatenate([expert.x for expert in experts]),
        q=first.q,
        scale=first.scale,
        zero=first.zero,
        channel_scale=first.channel_scale,
        x_scale=np.concatenate([expert.x_scale for expert in experts]),
        bias=np.stack([expert.bias for expert in experts if expert.bias is not None])
        if biased
        else None,
        expert_offsets=np.cumsum([0, *counts]).astype(offsets),
        experts=experts,
    )
