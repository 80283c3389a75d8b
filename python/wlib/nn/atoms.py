"""Linear layers whose weights are sums of atoms that all layers share (MASA, arXiv 2508.04581)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..atoms import atoms_reconstruct
from ..errors import refuse

_NAME = "wlib.nn.AtomDictionary"


class AtomDictionary(nn.Module):
    """The weights of one projection of L layers: W[l] = sum_s coef[l, s] atoms[s] + A[l] B[l].

    A model has one dictionary per kind of projection (Q, K, V, O), registered once, and an
    `AtomLinear` per layer that reads its weight from it. Within `cached_weights` all weights
    come from one call of `wlib.atoms_reconstruct`, so that the gradient of the atoms is formed
    once per step; without it every layer makes its own.

    Args:
        num_layers, out_features, in_features, num_atoms: L, N, K and S.
        coefficients: "mlp" trains an embedding per layer behind a shared MLP of three layers, as
            MASA does, until `fold`; "free" trains the coefficients themselves.
        per_channel: coefficients [L, S, N]: those per layer times a factor per output channel.
        embedding_dim: width of the embeddings and of the hidden layers of the MLP.
        residual_rank: r > 0 adds a product A[l] B[l] per layer, which starts at zero.
        group_size: None, or how many layers' weights `cached_weights` makes and holds at a time.
        device, dtype: of the parameters; floating point.

    Attributes:
        atoms: [S, N, K].
        coef: [L, S] or [L, S, N]; None before `fold` with "mlp".
        residual_a, residual_b: [L, N, r] and [L, r, K], or None.

    Raises:
        ValueError: a size is not positive or `coefficients` is neither of these.
    """

    coef: nn.Parameter | None

    def __init__(
        self,
        num_layers: int,
        out_features: int,
        in_features: int,
        num_atoms: int,
        *,
        coefficients: Literal["mlp", "free"] = "mlp",
        per_channel: bool = False,
        embedding_dim: int = 32,
        residual_rank: int = 0,
        group_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_layers": num_layers, "num_atoms": num_atoms, "embedding_dim": embedding_dim}
        sizes |= {"out_features": out_features, "in_features": in_features}
        sizes |= {} if group_size is None else {"group_size": group_size}
        for name, size in sizes.items():
            if size < 1:
                refuse(_NAME, f"{name} of at least 1", size, name)
        if residual_rank < 0:
            refuse(_NAME, "residual_rank of at least 0", residual_rank, "residual_rank")
        if coefficients not in ("mlp", "free"):
            refuse(_NAME, "'mlp' or 'free'", repr(coefficients), "coefficients")
        self.num_layers, self.num_atoms = num_layers, num_atoms
        self.out_features, self.in_features = out_features, in_features
        self.group_size = group_size
        self._cache: dict[int, Tensor] | None = None
        kind = {"device": device, "dtype": dtype}
        self.atoms = nn.Parameter(torch.empty(num_atoms, out_features, in_features, **kind))  # type: ignore[arg-type]
        free = torch.empty(num_layers, num_atoms, **kind)  # type: ignore[arg-type]
        self.embedding: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        self.channel: nn.Parameter | None = None
        if coefficients == "mlp":
            self.embedding = nn.Parameter(torch.empty(num_layers, embedding_dim, **kind))  # type: ignore[arg-type]
            self.mlp = _mlp(embedding_dim, num_atoms).to(device, dtype)
            self.coef = None
            if per_channel:
                self.channel = nn.Parameter(torch.ones(num_layers, num_atoms, out_features, **kind))  # type: ignore[arg-type]
        else:
            wide = free[..., None].expand(-1, -1, out_features).clone() if per_channel else free
            self.coef = nn.Parameter(wide)
        self.residual_a: nn.Parameter | None = None
        self.residual_b: nn.Parameter | None = None
        if residual_rank:
            a = torch.empty(num_layers, out_features, residual_rank, **kind)  # type: ignore[arg-type]
            b = torch.empty(num_layers, residual_rank, in_features, **kind)  # type: ignore[arg-type]
            self.residual_a, self.residual_b = nn.Parameter(a), nn.Parameter(b)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Atoms as `nn.Linear` draws a weight, rows of coefficients of mean squared norm 1."""
        bound = 1 / math.sqrt(self.in_features)
        self.atoms.uniform_(-bound, bound)
        if self.coef is not None:
            drawn = torch.randn(self.num_layers, self.num_atoms, device=self.coef.device)
            drawn = drawn / math.sqrt(self.num_atoms)
            self.coef.copy_(drawn if self.coef.dim() == 2 else drawn[..., None])
        if self.embedding is not None and self.mlp is not None:
            self.embedding.normal_()
            last = self.mlp[-1]
            assert isinstance(last, nn.Linear)
            rows = self.mlp(self.embedding).square().sum(-1).mean().sqrt()
            last.weight.div_(rows)
            last.bias.div_(rows)
        if self.residual_a is not None and self.residual_b is not None:
            self.residual_a.zero_()
            self.residual_b.uniform_(-bound, bound)

    def coefficients(self) -> Tensor:
        """The coefficients [L, S] or [L, S, N] as they are now, differentiable."""
        if self.embedding is None or self.mlp is None:
            assert self.coef is not None
            return self.coef
        rows: Tensor = self.mlp(self.embedding)
        return rows if self.channel is None else rows[..., None] * self.channel

    @torch.no_grad()
    def fold(self) -> AtomDictionary:
        """Keep the coefficients and drop what made them; itself. For after training."""
        if self.embedding is not None:
            self.coef = nn.Parameter(self.coefficients().clone())
            self.embedding = self.mlp = self.channel = None
        return self

    def weights(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The weights [stop - start, N, K] of a range of layers by one call; all by default.

        Under autocast in its dtype, cast on the way from atoms read once.
        """
        device = self.atoms.device.type
        autocast = torch.is_autocast_enabled(device)
        out_dtype = torch.get_autocast_dtype(device) if autocast else self.atoms.dtype
        with torch.autocast(device, enabled=False):
            coef = self.coefficients()[start:stop]
            wide = torch.float64 if self.atoms.dtype == torch.float64 else torch.float32
            residual = None
            if self.residual_a is not None and self.residual_b is not None:
                residual = (self.residual_a[start:stop], self.residual_b[start:stop])
            return atoms_reconstruct(
                self.atoms, coef.to(wide), residual=residual, out_dtype=out_dtype
            )

    def weight(self, layer: int) -> Tensor:
        """The weight [N, K] of one layer, from the cache of `cached_weights` if there is one."""
        if not 0 <= layer < self.num_layers:
            refuse(_NAME, f"a layer from 0 to {self.num_layers - 1}", layer, "layer")
        if self._cache is None:
            return self.weights(layer, layer + 1)[0]
        size = self.group_size or self.num_layers
        group = layer // size
        if group not in self._cache:
            self._cache.clear()  # holds one group at a time
            self._cache[group] = self.weights(
                group * size, min(self.num_layers, (group + 1) * size)
            )
        return self._cache[group][layer % size]

    def extra_repr(self) -> str:
        """Sizes, as `print` shows them."""
        return (
            f"num_layers={self.num_layers}, out_features={self.out_features}, "
            f"in_features={self.in_features}, num_atoms={self.num_atoms}"
        )


def _mlp(width: int, num_atoms: int) -> nn.Sequential:
    hidden = [nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*hidden, nn.Linear(width, num_atoms))


@contextlib.contextmanager
def cached_weights(model: nn.Module) -> Iterator[None]:
    """Within it, each dictionary of the model makes its weights once: around a forward pass.

    Without a group size they are made here, for all layers. With one, when the first layer of a
    group asks for its weight, and those of the group before are let go; that bounds memory where
    autograd keeps no weights: without gradients, or if every function under
    `torch.utils.checkpoint` enters this context itself. A context around checkpointed functions
    must also be around `backward`, which runs them again. Change no parameter within it.

    Args:
        model: the model that the dictionaries are registered in.
    """
    entered = [m for m in model.modules() if isinstance(m, AtomDictionary) and m._cache is None]
    try:
        for dictionary in entered:
            dictionary._cache = {}
            if dictionary.group_size is None:
                dictionary.weight(0)
        yield
    finally:
        for dictionary in entered:
            dictionary._cache = None


class AtomLinear(nn.Module):
    """y = x W[layer]^T + b with W from a dictionary: `nn.Linear` for one layer of several.

    The dictionary is not a submodule, or every layer's state dict would hold it: register it in
    the model, where `to`, `state_dict`, optimisers and `cached_weights` find it. A copy of the
    whole model has a dictionary of its own; a copy of this layer alone has one too.

    Args:
        dictionary: where the weights come from.
        layer: which of them this layer uses.
        bias: whether the layer adds a bias.

    Raises:
        ValueError: the dictionary has no such layer.
    """

    bias: nn.Parameter | None

    def __init__(self, dictionary: AtomDictionary, layer: int, bias: bool = True) -> None:
        super().__init__()
        if not 0 <= layer < dictionary.num_layers:
            expected = f"a layer from 0 to {dictionary.num_layers - 1}"
            refuse("wlib.nn.AtomLinear", expected, layer, "layer")
        self._shared = (dictionary,)  # a tuple hides it from nn.Module
        self.layer = layer
        atoms = dictionary.atoms
        zeros = torch.zeros(self.out_features, device=atoms.device, dtype=atoms.dtype)
        self.bias = nn.Parameter(zeros) if bias else None

    @property
    def dictionary(self) -> AtomDictionary:
        """Where the weight comes from."""
        return self._shared[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.dictionary.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.dictionary.out_features

    @property
    def weight(self) -> Tensor:
        """W[layer], [N, K]."""
        return self.dictionary.weight(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., K]; [..., N]."""
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """An `nn.Linear` with this layer's weight and bias, copied."""
        weight = self.weight
        size = (self.in_features, self.out_features)
        linear = nn.Linear(*size, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.clone())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, as `print` shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"layer={self.layer}, num_atoms={self.dictionary.num_atoms}, "
            f"bias={self.bias is not None}"
        )


def merge_atoms(model: nn.Module) -> list[str]:
    """Replace every `AtomLinear` in a model by an `nn.Linear`, in place; their names.

    Each dictionary is read once. The dictionaries stay where they are registered: delete them to
    free their memory.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, AtomLinear)]
    with torch.no_grad(), cached_weights(model):
        for name, layer in found:
            model.set_submodule(name, layer.merge())
    return [name for name, _ in found]
