"""Trains a small Llama-type model in BF16 and with FP4 recipes: same start, data and steps.

The text is what every Python brings along: the sources of its standard library and, in
`pydoc_data`, the topics of its language reference; every twentieth file is held out. A token is a
byte. Each recipe replaces the linear layers by `wlib.nn.FP4Linear`; embedding, head, norms and
attention stay in BF16, parameters and optimiser in float32. The table compares the loss on the held
out files with that of BF16 from the same seed, beside how much BF16 itself differs between seeds.

    python examples/train_small_llama.py [--preset cpu|cuda] [--seeds 3] [--recipes wlib,quartet2]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import wlib
from wlib.fp4_recipe import RECIPES

BASE = "bf16"
HELD_OUT = 20  # one file in so many
TAIL = 0.05  # the loss of a run is that of this last part of its steps, or of the held out text


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: tokens per step are batch * length."""

    width: int
    heads: int
    inner: int
    layers: int
    length: int
    batch: int
    steps: int
    rate: float
    validation: int  # batches


PRESETS = {
    "test": Preset(32, 2, 64, 1, 32, 8, 40, 1e-2, 2),
    "cpu": Preset(128, 4, 384, 2, 128, 8, 300, 3e-3, 32),
    "cuda": Preset(640, 10, 1728, 6, 512, 128, 4000, 1.2e-3, 64),
}


@dataclass(frozen=True)
class Run:
    """What one training run gave: losses in nats per byte."""

    recipe: str
    seed: int
    curve: list[float]  # of every step
    validation: float
    seconds: float

    @property
    def training(self) -> float:
        """Mean over the last steps."""
        return statistics.fmean(self.curve[-max(1, int(len(self.curve) * TAIL)) :])


def corpus() -> tuple[Tensor, Tensor]:
    """Bytes of the training files and of the held out ones."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, path in enumerate(files):
        parts[number % HELD_OUT == 0].append(path.read_bytes())
    training, held_out = (bytearray(b"\n".join(part)) for part in parts)
    return (torch.frombuffer(training, dtype=torch.uint8),
            torch.frombuffer(held_out, dtype=torch.uint8))  # fmt: skip


def windows(text: Tensor, preset: Preset, seed: int, device: str) -> Tensor:
    """int64 [batch, length + 1] from random places."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - preset.length, (preset.batch, 1), generator=generator)
    return text[starts + torch.arange(preset.length + 1)].long().to(device)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions of [B, heads, T, D]."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** -(torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    a, b = x.float().chunk(2, dim=-1)
    turned = torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)
    return turned.to(x.dtype)


class Block(nn.Module):
    """Attention and a SwiGLU feed-forward, each behind an RMS norm."""

    def __init__(self, p: Preset) -> None:
        super().__init__()
        self.heads = p.heads
        self.attention_norm, self.norm = nn.RMSNorm(p.width), nn.RMSNorm(p.width)
        self.qkv = nn.Linear(p.width, 3 * p.width, bias=False)
        self.merge = nn.Linear(p.width, p.width, bias=False)
        self.gate_up = nn.Linear(p.width, 2 * p.inner, bias=False)
        self.down = nn.Linear(p.inner, p.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(dim=2))  # [B, heads, T, D]
        attended = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Bytes [B, T] -> logits [B, T, 256]."""

    def __init__(self, p: Preset) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, p.width)
        self.blocks = nn.ModuleList(Block(p) for _ in range(p.layers))
        self.norm = nn.RMSNorm(p.width)
        self.head = nn.Linear(p.width, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in self.blocks:
            for linear in (block.merge, block.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * p.layers))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build(preset: Preset, recipe: str, seed: int, device: str) -> Llama:
    """The model from a seed; the same for every recipe."""
    torch.manual_seed(seed)
    model = Llama(preset)
    if recipe != BASE:
        wlib.nn.replace_linear(model, wlib.nn.FP4Linear, skip=("head",), recipe=recipe)
        wlib.nn.seed_fp4(model, seed)
    return model.to(device)


def loss_of(model: Llama, ids: Tensor) -> Tensor:
    """Mean over all positions, in nats."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate: a tenth of the steps up, then along a cosine to a tenth."""
    warm = max(1, preset.steps // 10)
    if step < warm:
        return preset.rate * (step + 1) / warm
    part = (step - warm) / max(1, preset.steps - warm)
    return preset.rate * (0.55 + 0.45 * math.cos(math.pi * part))


def train(
    preset: Preset, recipe: str, seed: int, texts: tuple[Tensor, Tensor], progress: Progress
) -> Run:
    """One run; the batches depend on the seed alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(preset, recipe, seed, device)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    task = progress.add_task(f"{recipe}, seed {seed}", total=preset.steps, loss=math.nan)
    curve, start = [], time.monotonic()
    for step in range(preset.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(preset, step)
        loss = loss_of(model, windows(texts[0], preset, seed * 10**6 + step, device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        curve.append(loss.item())
        progress.update(task, advance=1, loss=curve[-1])
    with torch.no_grad():
        held_out = [windows(texts[1], preset, -1 - i, device) for i in range(preset.validation)]
        validation = statistics.fmean(loss_of(model, ids).item() for ids in held_out)
    return Run(recipe, seed, curve, validation, time.monotonic() - start)


def gaps(runs: list[Run], recipe: str) -> list[float]:
    """Held out loss minus that of BF16 from the same seed."""
    base = {run.seed: run.validation for run in runs if run.recipe == BASE}
    return [run.validation - base[run.seed] for run in runs if run.recipe == recipe]


def table(runs: list[Run]) -> Table:
    """A row for each recipe; the noise is the deviation of BF16 over its seeds."""
    base = [run.validation for run in runs if run.recipe == BASE]
    noise = f"{statistics.stdev(base):.4f}" if len(base) > 1 else "one seed"
    columns = ("recipe", "training", "held out", "gap to bf16", "in %", "per seed", "s per run")
    title = f"loss in nats per byte; stdev of bf16 between seeds: {noise}"
    result = Table(*columns, title=title)
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own, found = [run for run in runs if run.recipe == recipe], gaps(runs, recipe)
        gap = statistics.fmean(found)
        result.add_row(
            recipe,
            f"{statistics.fmean(run.training for run in own):.4f}",
            f"{statistics.fmean(run.validation for run in own):.4f}",
            *(("", "", "") if recipe == BASE else
              (f"{gap:+.4f}", f"{100 * gap / statistics.fmean(base):+.2f}",
               " ".join(f"{value:+.4f}" for value in found))),
            f"{statistics.fmean(run.seconds for run in own):.0f}",
        )  # fmt: skip
    return result


def plot(runs: list[Run], path: Path) -> None:
    """Smoothed curves of the first seed, and their distance from BF16."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    first = [run for run in runs if run.seed == runs[0].seed]
    width = max(1, len(first[0].curve) // 20)

    def smooth(curve: list[float]) -> list[float]:
        return [statistics.fmean(curve[i : i + width]) for i in range(len(curve) - width + 1)]

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    base = smooth(next(run.curve for run in first if run.recipe == BASE))
    steps = range(width, width + len(base))
    for run in first:
        own = smooth(run.curve)
        left.plot(steps, own, label=run.recipe, linewidth=1)
        difference = [1000 * (a - b) for a, b in zip(own, base, strict=True)]
        right.plot(steps, difference, label=run.recipe, linewidth=1)
    left.set(xlabel="step", ylabel="training loss, nats per byte", yscale="log")
    right.set(xlabel="step", ylabel="above bf16, 1e-3 nats")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(f"mean over {width} steps, seed {first[0].seed}")
    figure.savefig(path, dpi=150)


def run_all(preset: Preset, recipes: list[str], seeds: int, quiet: bool = False) -> list[Run]:
    """Every recipe and BF16, seed by seed."""
    texts = corpus()
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, disable=quiet) as progress:
        return [train(preset, recipe, seed, texts, progress)
                for seed in range(seeds) for recipe in (BASE, *recipes)]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--preset", choices=PRESETS, default=default)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="of wlib.FP4Recipe.named")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of those of the preset")
    parser.add_argument("--out", type=Path, default=Path("build/train_small_llama"))
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.steps:
        preset = dataclasses.replace(preset, steps=args.steps)
    recipes = [name for name in args.recipes.split(",") if name]
    for name in recipes:
        wlib.FP4Recipe.named(name)
    runs = run_all(preset, recipes, args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(run) for run in runs]
    (args.out / "runs.json").write_text(json.dumps({"preset": dataclasses.asdict(preset),
                                                    "runs": rows}))  # fmt: skip
    plot(runs, args.out / "loss.png")
    Console().print(table(runs))
    parameters = sum(p.numel() for p in Llama(preset).parameters())
    tokens = preset.steps * preset.batch * preset.length
    print(f"{parameters} parameters, {tokens / parameters:.1f} bytes of text per parameter; "
          f"curves and figure in {args.out}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
