"""What a quantiser remembers of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """The squared output error of a change d [K] of a weight row: d h d^T.

    Attributes:
        h: float64 [K, K], damped second moments of the inputs, positive definite.
        factor: float32 [K, K], upper triangular u with u^T u = h^-1. Row j is what an error in
            column j asks of the columns behind it, and u_jj^-2 what it costs after they adapted.
    """

    h: Tensor
    factor: Tensor

    @classmethod
    def of(cls, second_moments: Tensor, damping: float) -> Metric:
        """The metric of second moments [K, K], their diagonal raised by a share of its mean."""
        h = second_moments.clone()
        lift = damping * h.diagonal().mean()
        h.diagonal().add_(torch.where(lift > 0, lift, 1.0))  # inputs that are all 0 count alike
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        return cls(h, torch.linalg.cholesky(inverse, upper=True).float())

    def error(self, difference: Tensor) -> Tensor:
        """Squared output error of every row of a change [N, K], float64 [N]."""
        difference = difference.double()
        return ((difference @ self.h) * difference).sum(dim=1)


class Moments:
    """First and second moments of inputs [T, K], gathered batch by batch in float64."""

    def __init__(self, k: int, device: torch.device) -> None:
        self._count = 0
        self._total = torch.zeros(k, dtype=torch.float64, device=device)
        self._square = torch.zeros(k, k, dtype=torch.float64, device=device)
        self._metrics: dict[tuple[bool, float], Metric] = {}

    def add(self, x: Tensor) -> None:
        """Take in inputs of any floating dtype [T, K]."""
        x = x.double()
        self._count += len(x)
        self._total += x.sum(dim=0)
        self._square += x.T @ x
        self._metrics.clear()

    @property
    def mean(self) -> Tensor:
        """float64 [K]."""
        return self._total / self._count

    def second(self, centred: bool) -> Tensor:
        """Second moments about the mean, if centred, or about 0; float64 [K, K]."""
        about_zero = self._square / self._count
        return about_zero - self.mean.outer(self.mean) if centred else about_zero

    def metric(self, centred: bool, damping: float) -> Metric:
        """The metric of `second`; layers that share inputs share the work."""
        key = (centred, damping)
        if key not in self._metrics:
            self._metrics[key] = Metric.of(self.second(centred), damping)
        return self._metrics[key]
