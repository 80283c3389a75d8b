"""A linear layer whose weight is low rank plus sparse, for training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import refuse
from ..sparse_lowrank import SparseSupport, _linear, sparse_support

_NAME = "wlib.nn.SparseLowRankLinear"


class SparseLowRankLinear(nn.Module):
    """y = x (scale * B A + S)^T + bias, S on a fixed random support (SLTrain, arXiv 2406.02214).

    Starts as in SLTrain: A and the values uniform within 1 / sqrt(in_features), B zero, the bias
    uniform within 1 / sqrt(out_features). The support is drawn once, from `seed`, and saved with
    the state dict in two bytes per value; what a state dict brings is checked when it is loaded.

    Args:
        in_features, out_features: K and N.
        rank: r, at least 1.
        density: share of S that has values, 0 to 1; SLTrain takes 0.03 to 0.05.
        alpha: scale is alpha / rank.
        bias: whether the layer adds a bias.
        seed: of the support; layers of one shape need different ones to differ.
        device, dtype: of the parameters.

    Attributes:
        a: A [r, K].
        b: B [N, r].
        values: [values], in the order of `support`.
        bias: [N] or None.
        positions, offsets: the support, see `wlib.SparseSupport`.

    Raises:
        ValueError: rank or density is out of range.
    """

    positions: Tensor
    offsets: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        density: float = 0.03,
        *,
        alpha: float = 1.0,
        bias: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            refuse(_NAME, "rank of at least 1", rank, "rank")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.density = density
        self.scale = alpha / rank
        support = sparse_support(out_features, in_features, density, seed)
        self.register_buffer("positions", support.positions.to(device))
        self.register_buffer("offsets", support.offsets.to(device))

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.a = empty(rank, in_features)
        self.b = empty(out_features, rank)
        self.values = empty(support.count)
        self.bias = empty(out_features) if bias else None
        self.register_load_state_dict_post_hook(_check_support)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew; the support stays."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.a, -bound, bound)
        nn.init.zeros_(self.b)
        nn.init.uniform_(self.values, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.out_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, rank: int, density: float = 0.03, *, seed: int = 0
    ) -> SparseLowRankLinear:
        """A layer near a trained one: the best B A of its rank, and what it misses at the support.

        An approximation for starting from, good only if the weight is close to low rank; scale is
        1. The singular vectors are computed in float32, or float64 for a float64 layer.
        """
        w = linear.weight.detach()
        module = cls(
            linear.in_features,
            linear.out_features,
            rank,
            density,
            alpha=rank,
            bias=linear.bias is not None,
            seed=seed,
            device=w.device,
            dtype=w.dtype,
        )
        wide = w if w.dtype == torch.float64 else w.float()
        left, sizes, right = torch.linalg.svd(wide, full_matrices=False)
        roots = sizes[:rank].sqrt()
        kept = len(roots)  # a rank beyond the weight's leaves zeros
        with torch.no_grad():
            module.a.zero_()
            module.b[:, :kept] = left[:, :kept] * roots
            module.a[:kept] = roots[:, None] * right[:kept]
            missed = wide - module.b.to(wide.dtype) @ module.a.to(wide.dtype)
            module.values.copy_(module.support.gather(missed))
            if module.bias is not None:
                module.bias.copy_(linear.bias)
        return module.train(linear.training)

    @property
    def support(self) -> SparseSupport:
        """Where S has values; checked again, which waits for the device."""
        return SparseSupport(self.positions, self.offsets, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; see `wlib.sparse_lowrank_linear`.

        Args:
            x: [..., K] in the dtype of the parameters, or any under autocast.

        Returns:
            [..., N].
        """
        shape = self.out_features, self.in_features
        places = self.positions, self.offsets
        return _linear(x, self.b, self.a, self.values, *places, shape, self.scale, self.bias)

    def dense(self) -> Tensor:
        """W [N, K] in the dtype of the parameters; for inspection and export."""
        return self.scale * (self.b @ self.a) + self.support.dense(self.values).to(self.b.dtype)

    def extra_repr(self) -> str:
        """The arguments of the constructor, as `print` shows them."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", rank={self.rank}, density={self.density}, scale={self.scale}"
        return text + f", bias={self.bias is not None}"


def _check_support(module: SparseLowRankLinear, incompatible: Any) -> None:
    """Refuse a loaded support that does not describe a matrix of the module's shape."""
    _ = module.support
