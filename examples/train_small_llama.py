"""Trains a small Llama-type model in BF16 and with FP4 recipes: same start, data and steps.

The model and its text are those of `small_llama.py`. Each recipe replaces the linear layers by
`wlib.nn.FP4Linear`; embedding, head, norms and attention stay in BF16, parameters and optimiser in
float32. The table compares the loss on the held out files with that of BF16 from the same seed,
beside how much BF16 itself differs between seeds.

    python examples/train_small_llama.py [--preset cpu|cuda] [--seeds 3] [--recipes wlib,quartet2]
"""

from __future__ import annotations

import sys

import torch

import wlib
from small_llama import Llama, Preset, Run, chosen, options, plot, report, table
from small_llama import run_all as run_arms
from wlib.fp4_recipe import RECIPES

__all__ = ["PRESETS", "plot", "run_all", "table"]
BASE = "bf16"
PRESETS = {
    "test": Preset(32, 2, 64, 1, 32, 8, 40, 1e-2, 2),
    "cpu": Preset(128, 4, 384, 2, 128, 8, 300, 3e-3, 32),
    "cuda": Preset(640, 10, 1728, 6, 512, 128, 4000, 1.2e-3, 64),
}


def build(preset: Preset, recipe: str, seed: int) -> Llama:
    """The model from a seed; the same for every recipe."""
    torch.manual_seed(seed)
    model = Llama(preset)
    if recipe != BASE:
        wlib.nn.replace_linear(model, wlib.nn.FP4Linear, skip=("head",), recipe=recipe)
        wlib.nn.seed_fp4(model, seed)
    return model


def run_all(preset: Preset, recipes: list[str], seeds: int, quiet: bool = False) -> list[Run]:
    """BF16 and every recipe, seed by seed."""

    def from_seed(recipe: str, seed: int) -> Llama:
        return build(preset, recipe, seed)

    return run_arms(preset, [BASE, *recipes], seeds, from_seed, quiet)


def main() -> int:
    parser = options(__doc__.splitlines()[0], PRESETS, "train_small_llama")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="of wlib.FP4Recipe.named")
    args = parser.parse_args()
    preset = chosen(args, PRESETS)
    recipes = [name for name in args.recipes.split(",") if name]
    for name in recipes:
        wlib.FP4Recipe.named(name)
    runs = run_all(preset, recipes, args.seeds)
    report(runs, preset, sum(p.numel() for p in Llama(preset).parameters()), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
