"""Layers with a frozen base and a trainable delta that is folded into one weight."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rebuild
from ..errors import refuse
from ..prng import prng_expand
from ..tucker import tucker_merge, tucker_reconstruct


class FoldWarning(UserWarning):
    """A delta could not be folded into its base, so that a layer computes twice."""


class DeltaLayer(nn.Module):
    """What layers W = W0 + scale * delta have in common; `TuckerLinear` and others derive from it.

    Every forward pass folds the delta into one weight, in one rounding, and applies that: one
    matmul or convolution. Only dropout on the delta's input cannot be folded; while it is active
    the layer applies base and delta one after the other and says so once, by a `FoldWarning`.

    `merge` keeps the folded weight next to the base, which is never written: a merged layer holds
    both, `unmerge` and `train` let the folded one go, and the base is bit for bit what it was. The
    folded weight is not part of the state dict. To hold one weight only, use `folded`.

    Attributes:
        base: the layer with W0 and the bias, frozen.
        scale: factor of the delta.
        dropout: probability to drop an input of the delta while training.
        merged_weight: None, or the folded weight.
    """

    merged_weight: Tensor | None

    def __init__(self, base: nn.Linear | nn.Conv2d, scale: float, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            refuse(f"wlib.nn.{type(self).__name__}", "dropout in [0, 1)", dropout, "dropout")
        self.base = base.requires_grad_(False)
        self.scale = float(scale)
        self.dropout = float(dropout)
        self._warned = False
        self.register_buffer("merged_weight", None, persistent=False)
        self.train(base.training)

    def fold(self) -> Tensor:
        """W0 + scale * delta in the dtype of W0, differentiable in the delta."""
        raise NotImplementedError

    def delta(self, out_dtype: torch.dtype | None = None) -> Tensor:
        """scale * delta alone, of the shape of W0; float32 by default, or of `out_dtype`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to what its base takes."""
        if self.training and self.dropout:
            return self._apart(x)
        weight = self.merged_weight
        return self._run(x, self.fold() if weight is None else weight, self.base.bias)

    @torch.no_grad()
    def merge(self) -> DeltaLayer:
        """Hold the folded weight until `unmerge` or `train`; itself.

        Raises:
            ValueError: the layer is in training, where parameters must keep their gradients.
        """
        if self.training:
            expected = "a layer in eval mode"
            refuse(f"wlib.nn.{type(self).__name__}.merge", expected, "training=True", "self")
        self.merged_weight = self.fold().detach()
        return self

    def unmerge(self) -> DeltaLayer:
        """Let the folded weight go; the base was never changed. Itself."""
        self.merged_weight = None
        return self

    @property
    def is_merged(self) -> bool:
        """Whether the folded weight is held."""
        return self.merged_weight is not None

    def train(self, mode: bool = True) -> DeltaLayer:
        """As `nn.Module.train`; training lets the merged weight go."""
        if mode:
            self.unmerge()
        super().train(mode)
        return self

    @torch.no_grad()
    def folded(self) -> nn.Linear | nn.Conv2d:
        """A plain layer with the folded weight and a copy of the bias, not to be undone."""
        made = _like(self.base)
        made.weight = nn.Parameter(self.fold().detach().clone())
        if self.base.bias is not None:
            made.bias = nn.Parameter(self.base.bias.detach().clone())
        return made.train(self.training)

    @torch.no_grad()
    def drift(self) -> float:
        """The largest distance of a folded weight from W0 + scale * delta in float64, in ULP.

        A unit in the last place of the dtype of W0, at the float64 value. 0.5 is what one rounding
        costs in bfloat16 or float16; in float32 the sums' own rounding comes on top, in elements
        that cancel by far.
        """
        exact = self.base.weight.double() + self.delta(torch.float64)
        info = torch.finfo(self.base.weight.dtype)
        _, exponent = torch.frexp(exact.abs().clamp_min(info.smallest_normal))
        ulp = torch.ldexp(torch.full_like(exact, info.eps), exponent - 1)
        weight = self.fold() if self.merged_weight is None else self.merged_weight
        return float(((weight.double() - exact).abs() / ulp).max()) if exact.numel() else 0.0

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.base, nn.Conv2d):
            y: Tensor = self.base._conv_forward(x, weight, bias)  # knows the padding modes
            return y
        return F.linear(x, weight, bias)

    def _apart(self, x: Tensor) -> Tensor:
        if not self._warned and not torch.compiler.is_compiling():
            self._warned = True
            text = f"wlib.nn.{type(self).__name__}: dropout={self.dropout} of the delta's input "
            text += "forbids folding, base and delta are applied one after the other"
            warnings.warn(text, FoldWarning, stacklevel=3)
        y = self._run(x, self.base.weight, self.base.bias)
        delta = self.delta().to(self.base.weight.dtype)
        return y + self._run(F.dropout(x, self.dropout), delta, None)


def _like(base: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """An empty layer of the same sizes."""
    bias = base.bias is not None
    if not isinstance(base, nn.Conv2d):
        return nn.Linear(base.in_features, base.out_features, bias, device="meta")
    return nn.Conv2d(
        base.in_channels,
        base.out_channels,
        base.kernel_size,  # type: ignore[arg-type]
        base.stride,  # type: ignore[arg-type]
        base.padding,  # type: ignore[arg-type]
        base.dilation,  # type: ignore[arg-type]
        base.groups,
        bias,
        base.padding_mode,
        device="meta",
    )


class _TuckerLayer(DeltaLayer):
    """A delta in Tucker form: a core times a factor for every dimension of W0."""

    def __init__(
        self, base: nn.Linear | nn.Conv2d, rank: int | Sequence[int], scale: float, dropout: float
    ) -> None:
        super().__init__(base, scale, dropout)
        shape = base.weight.shape  # of a grouped convolution [out, in / groups, kh, kw]
        ranks = [rank] * 2 + list(shape[2:]) if isinstance(rank, int) else list(rank)
        where = f"wlib.nn.{type(self).__name__}"
        if len(ranks) != len(shape):
            refuse(where, f"{len(shape)} ranks", len(ranks), "rank")
        if min(ranks) < 1:
            refuse(where, "ranks of at least 1", ranks, "rank")
        device, dtype = base.weight.device, torch.float32
        self.core = nn.Parameter(torch.zeros(ranks, device=device, dtype=dtype))
        self.factors = nn.ParameterList(
            nn.Parameter(torch.empty(size, r, device=device, dtype=dtype))
            for size, r in zip(shape, ranks, strict=True)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Factors Kaiming-normal with a = sqrt(3), the core zero: FLoRA's start, a delta of 0."""
        self.core.zero_()
        for factor in self.factors:
            nn.init.kaiming_normal_(factor, a=math.sqrt(3))

    def fold(self) -> Tensor:
        """W0 + scale * the Tucker form, rounded once to the dtype of W0."""
        weight = self.base.weight.contiguous()
        return tucker_merge(weight, self.core, list(self.factors), self.scale)

    def delta(self, out_dtype: torch.dtype | None = None) -> Tensor:
        """scale * the Tucker form."""
        core = self.scale * self.core.to(out_dtype)
        return tucker_reconstruct(core, [factor.to(out_dtype) for factor in self.factors])

    def extra_repr(self) -> str:
        """Ranks and factors, as `print` shows them."""
        return f"rank={list(self.core.shape)}, scale={self.scale}, dropout={self.dropout}"


class TuckerLinear(_TuckerLayer):
    """y = x (W0 + scale * A G B^T)^T + b: FLoRA (arXiv 2405.14739) for `nn.Linear`.

    Args:
        base: the layer to adapt; used as it is and frozen.
        rank: r_out and r_in, or one number for both.
        scale, dropout: see `DeltaLayer`.

    Attributes:
        core: float32 [r_out, r_in], starts at zero.
        factors: float32 [out, r_out], [in, r_in].

    Raises:
        ValueError: the ranks are not two positive numbers, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int | Sequence[int] = 8,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base, rank, scale, dropout)


class TuckerConv2d(_TuckerLayer):
    """A convolution with W0 + scale * (G x1 A x2 B x3 C x4 D): FLoRA (arXiv 2405.14739).

    Args:
        base: the layer to adapt, grouped or not; used as it is and frozen.
        rank: r_out, r_in, r_kh and r_kw, or one number for the first two and the kernel whole.
        scale, dropout: see `DeltaLayer`.

    Attributes:
        core: float32 [r_out, r_in, r_kh, r_kw], starts at zero.
        factors: float32 [out, r_out], [in / groups, r_in], [kh, r_kh], [kw, r_kw].

    Raises:
        ValueError: the ranks are not four positive numbers, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        base: nn.Conv2d,
        rank: int | Sequence[int] = (16, 16, 2, 2),
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base, rank, scale, dropout)


class NolaLinear(DeltaLayer):
    """y = x (W0 + scale * B A)^T + b, both factors sums of random bases (NOLA, arXiv 2310.02556).

    A = sum_i alpha[i] A_i / sqrt(k) and B = sum_i beta[i] B_i / sqrt(k), the bases made from the
    seed as they are needed: 2 k numbers are trained and stored. In eval mode without gradients A
    and B are kept once expanded, until the coefficients change; so a token costs no expansion.

    Args:
        base: the layer to adapt; used as it is and frozen.
        num_bases: k.
        rank: columns of B.
        seed: of the bases; layers of one model share it and differ in `tensor_id`.
        tensor_id: A is number 2 * tensor_id of the seed, B the next.
        dist: distribution of the bases, see `wlib.prng_expand`.
        scale, dropout: see `DeltaLayer`.

    Attributes:
        alpha, beta: float32 [k]; alpha starts normal, beta at zero.

    Raises:
        ValueError: a size is not positive, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        base: nn.Linear,
        num_bases: int = 64,
        rank: int = 8,
        *,
        seed: int = 0,
        tensor_id: int = 0,
        dist: str = "uniform",
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base, scale, dropout)
        for name, size in (("num_bases", num_bases), ("rank", rank)):
            if size < 1:
                refuse("wlib.nn.NolaLinear", f"{name} of at least 1", size, name)
        self.rank, self.seed, self.tensor_id, self.dist = rank, seed, tensor_id, dist
        self._kept: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        device = base.weight.device
        self.alpha = nn.Parameter(torch.randn(num_bases, device=device))
        self.beta = nn.Parameter(torch.zeros(num_bases, device=device))

    def expand(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] in float32, differentiable in alpha and beta."""
        out_features, in_features = self.base.weight.shape
        norm = len(self.alpha) ** -0.5
        number = 2 * self.tensor_id
        a = prng_expand(
            self.alpha * norm, (self.rank, in_features), self.seed, self.dist, tensor_id=number
        )
        b = prng_expand(
            self.beta * norm, (out_features, self.rank), self.seed, self.dist, tensor_id=number + 1
        )
        return a, b

    def fold(self) -> Tensor:
        """W0 + scale * B A, rounded once to the dtype of W0."""
        a, b = self._factors()
        return rebuild.lora(self.base.weight.contiguous(), a, b, self.scale)

    def delta(self, out_dtype: torch.dtype | None = None) -> Tensor:
        """scale * B A."""
        a, b = self._factors()
        return rebuild.lora(None, a.to(out_dtype), b.to(out_dtype), self.scale)

    def train(self, mode: bool = True) -> NolaLinear:
        """As `nn.Module.train`; the expanded factors are let go."""
        self._kept = None
        super().train(mode)
        return self

    def _factors(self) -> tuple[Tensor, Tensor]:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.expand()
        # What in-place changes, loading and moving leave different.
        ends = (self.alpha, self.beta)
        state = tuple(n for t in ends for n in (t.data_ptr(), t._version))
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, *self.expand())
        return self._kept[1:]

    def extra_repr(self) -> str:
        """Sizes and seed, as `print` shows them."""
        return (
            f"num_bases={len(self.alpha)}, rank={self.rank}, seed={self.seed}, "
            f"tensor_id={self.tensor_id}, dist={self.dist!r}, scale={self.scale}, "
            f"dropout={self.dropout}"
        )
