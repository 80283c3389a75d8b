"""Trains a small language model whose layers share attention weights (MASA, arXiv 2508.04581).

Three models of `small_llama.py`, the same text, seeds and steps: with dense projections Q, K, V and
O; with a dictionary of atoms for each of the four, a third as many atoms as layers, their
coefficients made by an embedding and an MLP as in the paper; and with projections of low rank that
hold as many numbers as the atoms. The feed-forward parts are dense in all three.

    python examples/train_masa.py [--preset cpu|cuda] [--seeds 3] [--steps 300]
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn

from small_llama import Llama, Preset, chosen, options, report, run_all
from wlib.nn import AtomDictionary, AtomLinear, cached_weights

ARMS = ("dense", "masa", "low rank")
SHARE = 3  # layers per atom: two thirds of the attention parameters are gone
PRESETS = {
    "test": Preset(48, 2, 96, 3, 32, 8, 40, 1e-2, 2),
    "cpu": Preset(96, 4, 256, 6, 128, 8, 400, 3e-3, 32),
    "cuda": Preset(768, 12, 2048, 12, 512, 64, 4000, 1e-3, 64),
}


class LowRank(nn.Module):
    """y = x A^T B^T, drawn so that B A has the deviation of a dense weight."""

    def __init__(self, width: int, rank: int, std: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, width) / math.sqrt(width))
        self.b = nn.Parameter(torch.randn(width, rank) * std * math.sqrt(width / rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.T @ self.b.T


class Together(nn.Module):
    """Several projections of the same input, side by side."""

    def __init__(self, *projections: nn.Module) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([projection(x) for projection in self.projections], dim=-1)


class Masa(Llama):
    """The model over four dictionaries, each of which makes its weights once per pass."""

    def __init__(self, p: Preset) -> None:
        super().__init__(p)
        sizes = (p.layers, p.width, p.width, p.layers // SHARE)
        self.dictionaries = nn.ModuleDict({kind: AtomDictionary(*sizes) for kind in "qkvo"})
        for kind, std in zip("qkvo", _deviations(p), strict=True):
            # Rows of coefficients have norm 1: weights deviate as much as atoms do.
            nn.init.normal_(self.dictionaries[kind].atoms, std=std)
        for i, block in enumerate(self.blocks):
            q, k, v, o = (AtomLinear(self.dictionaries[kind], i, bias=False) for kind in "qkvo")
            block.qkv, block.merge = Together(q, k, v), o

    def forward(self, ids: Tensor) -> Tensor:
        with cached_weights(self):
            return super().forward(ids)


def _deviations(p: Preset) -> tuple[float, ...]:
    """Of the weights of Q, K, V and O, as `Llama` draws them."""
    return (0.02, 0.02, 0.02, 0.02 / math.sqrt(2 * p.layers))


def low_rank_model(p: Preset) -> Llama:
    """2 width * rank numbers per projection, as many as a layer's part of the atoms."""
    model, rank = Llama(p), p.width // SHARE // 2
    for block in model.blocks:
        *qkv, o = (LowRank(p.width, rank, std) for std in _deviations(p))
        block.qkv, block.merge = Together(*qkv), o
    return model


def build(preset: Preset, arm: str, seed: int) -> nn.Module:
    """The model of an arm; all arms of a seed have the same embedding, head and feed-forward."""
    torch.manual_seed(seed)
    make = {"dense": Llama, "masa": Masa, "low rank": low_rank_model}[arm]
    return make(preset)


def attention_parameters(model: nn.Module) -> int:
    """Numbers that Q, K, V and O need after training: atoms and coefficients of a dictionary."""
    count = sum(
        p.numel() for name, p in model.named_parameters() if ".qkv." in name or ".merge." in name
    )
    for module in model.modules():
        if isinstance(module, AtomDictionary):
            count += module.atoms.numel() + module.num_layers * module.num_atoms
    return count


def main() -> int:
    args = options(__doc__.splitlines()[0], PRESETS, "train_masa").parse_args()
    preset = chosen(args, PRESETS)
    runs = run_all(preset, ARMS, args.seeds, lambda arm, seed: build(preset, arm, seed))
    dense = build(preset, "dense", 0)
    report(runs, preset, sum(p.numel() for p in dense.parameters()), args.out)
    whole = attention_parameters(dense)
    for arm in ARMS:
        count = attention_parameters(build(preset, arm, 0))
        print(f"{arm}: {count} parameters of attention, {count / whole:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
