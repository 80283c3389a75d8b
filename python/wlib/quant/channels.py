"""Channel-wise scaling: factors on a layer's input channels, paid for by the layer before.

A target's weight is multiplied by s [K] along its input channels and the outputs of its source, a
norm or a linear layer, are divided by s. The model computes the same; its weights become easier to
quantise (FireQ, arXiv 2505.20839; AWQ, arXiv 2306.00978).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import refuse
from .calibration import Batch, linear_layer, samples
from .recipe import Recipe
from .weight import quantize_weight

_NAME = "wlib.quant.quantize_model"
_SAMPLE = 512  # tokens on which exponents are compared
_EXPONENTS = tuple(step / 10 for step in range(10))


@dataclass(frozen=True)
class Fold:
    """A layer and the layers that alone read its outputs, channel by channel.

    The caller vouches for that: a norm that also feeds a residual is no source.

    Attributes:
        source: name of a norm or linear layer; a dotted name's last parts fit all such layers.
        targets: names of linear layers beside the source, from the same parent on.
        head_dim: D, needed where a value projection has fewer heads than its target (grouped
            queries) and the source's parent has no attribute `head_dim`.
    """

    source: str
    targets: tuple[str, ...]
    head_dim: int | None = None


LLAMA_FOLDS = (
    Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fold("self_attn.v_proj", ("self_attn.o_proj",)),
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)


def scale_channels(
    model: nn.Module,
    layers: Sequence[str],
    recipe: Recipe,
    folds: Sequence[Fold],
    batches: Sequence[Batch],
) -> None:
    """Scale, in place, the channels of every fold whose targets are among the named layers.

    Raises:
        ValueError: no fold fits the model, or folding would change what a source computes by
            more than the factors.
    """
    found = [pair for fold in folds for pair in _find(model, layers, fold)]
    if not found:
        refuse(_NAME, "folds that name layers of the model", list(folds), "folds")
    seen = {}
    if recipe.channel_scaling == "awq":
        seen = samples(model, [targets[0] for _, targets, _ in found], batches, _SAMPLE)
    for source_name, target_names, head_dim in found:
        source = model.get_submodule(source_name)
        targets = [linear_layer(model, name) for name in target_names]
        weight = torch.cat([target.weight for target in targets]).float()  # [N, K]
        repeat = _query_repeat(model, source_name, weight.shape[1], head_dim)
        if recipe.channel_scaling == "awq":
            if target_names[0] not in seen:  # an expert no token went to
                continue
            factors = _search(weight, seen[target_names[0]].float(), repeat, recipe)
        else:
            size = weight.abs()
            sizes = size.amax(dim=0) if recipe.channel_scaling == "absmax" else size.mean(dim=0)
            factors = repeat.join(1 / sizes.clamp_min(1e-3 * sizes.mean()))
        factors = factors.double() / (factors.amax() * factors.amin()).sqrt()
        _divide_outputs(source, source_name, factors)
        for target in targets:
            target.weight.data.copy_(target.weight.double() * repeat.spread(factors))


@dataclass(frozen=True)
class _Repeat:
    """How a source's channels appear among its targets': heads repeated for grouped queries."""

    heads: int
    times: int
    head_dim: int

    def join(self, x: Tensor) -> Tensor:
        """A target's channels [K] -> the source's, the geometric mean over copies."""
        return x.view(self.heads, self.times, self.head_dim).log().mean(dim=1).exp().flatten()

    def spread(self, x: Tensor) -> Tensor:
        """The source's channels -> a target's [K]."""
        copies = x.view(self.heads, 1, self.head_dim).expand(-1, self.times, -1)
        return copies.reshape(-1)


def _find(
    model: nn.Module, layers: Sequence[str], fold: Fold
) -> list[tuple[str, tuple[str, ...], int | None]]:
    found = []
    for name, _ in model.named_modules():
        if name == fold.source or name.endswith(f".{fold.source}"):
            prefix = name.removesuffix(fold.source)
            targets = tuple(prefix + target for target in fold.targets)
            if all(target in layers for target in targets):
                found.append((name, targets, fold.head_dim))
    return found


def _query_repeat(model: nn.Module, name: str, k: int, head_dim: int | None) -> _Repeat:
    width = len(next(model.get_submodule(name).parameters(recurse=False)))
    if width == k:
        return _Repeat(1, 1, k)
    if head_dim is None:
        head_dim = getattr(model.get_submodule(name.rpartition(".")[0]), "head_dim", None)
    if not isinstance(head_dim, int) or k % width or width % head_dim:
        expected = f"head_dim to spread {width} outputs of {name} over {k} inputs"
        refuse(_NAME, expected, head_dim, "folds")
    return _Repeat(width // head_dim, k // width, head_dim)


def _search(weight: Tensor, x: Tensor, repeat: _Repeat, recipe: Recipe) -> Tensor:
    """The power of the mean activation that makes the sample's output error least."""
    activation = x.abs().mean(dim=0)
    activation = repeat.join(activation.clamp_min(1e-4 * activation.mean() + 1e-30))
    best, least = torch.ones_like(activation), torch.inf
    for exponent in _EXPONENTS:
        factors = activation.pow(exponent)
        factors = factors / (factors.amax() * factors.amin()).sqrt()
        spread = repeat.spread(factors)
        rounded = quantize_weight(weight * spread, recipe.data_free).dequantize() / spread
        error = float((x @ (rounded - weight).T).double().square().sum())
        if error < least:
            best, least = factors, error
    return best


def _divide_outputs(source: nn.Module, name: str, factors: Tensor) -> None:
    """Divide what a norm or linear layer puts out by factors [K], or refuse and change nothing."""
    parameters = list(source.parameters(recurse=False))  # weight and bias
    before = [parameter.detach().clone() for parameter in parameters]
    probe = torch.randn(8, before[0].shape[-1], generator=torch.Generator().manual_seed(0))
    probe = probe.to(before[0])
    expected = source(probe)
    for parameter, old in zip(parameters, before, strict=True):
        parameter.data.copy_(old.double() / factors.view(-1, *(1,) * (old.dim() - 1)))
    # A norm that multiplies with 1 + weight, say, would fail this.
    error = (source(probe) * factors - expected).norm() / expected.norm()
    if not error < 8 * torch.finfo(probe.dtype).eps:
        for parameter, old in zip(parameters, before, strict=True):
            parameter.data.copy_(old)
        refuse(_NAME, f"outputs of {name} proportional to its parameters", "others", "folds")
