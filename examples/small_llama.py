"""What the training examples share: a small Llama-type model, its text, the loop and the figures.

The text is what every Python brings along: the sources of its standard library and, in
`pydoc_data`, the topics of its language reference; every twentieth file is held out. A token is a
byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from figures import panels, save

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


@dataclass(frozen=True)
class Run:
    """What one training run gave: losses in nats per byte."""

    arm: str
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


def windows(text: Tensor, batch: int, length: int, seed: int, device: str) -> Tensor:
    """int64 [batch, length + 1] from random places."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (batch, 1), generator=generator)
    return text[starts + torch.arange(length + 1)].long().to(device)


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


# The model of an arm from a seed; all arms of a seed start from the same draws where they can.
Build = Callable[[str, int], nn.Module]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
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


def bar(quiet: bool) -> Progress:
    """Where `train` shows how far it is."""
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"),
               TimeElapsedColumn())  # fmt: skip
    return Progress(*columns, disable=quiet)


def train(
    preset: Preset,
    arm: str,
    seed: int,
    build: Build,
    texts: tuple[Tensor, Tensor],
    progress: Progress,
) -> Run:
    """One run; the batches depend on the seed alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(arm, seed).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    task = progress.add_task(f"{arm}, seed {seed}", total=preset.steps, loss=math.nan)
    curve, start = [], time.monotonic()
    for step in range(preset.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(preset, step)
        number = seed * 10**6 + step
        loss = loss_of(model, windows(texts[0], preset.batch, preset.length, number, device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        curve.append(loss.item())
        progress.update(task, advance=1, loss=curve[-1])
    return Run(arm, seed, curve, held_out(model, preset, texts[1]), time.monotonic() - start)


@torch.no_grad()
def held_out(model: nn.Module, preset: Preset, text: Tensor) -> float:
    """Mean loss on the same places of the held out text, whatever the model."""
    device = str(next(model.parameters()).device)
    sizes = (preset.batch, preset.length)
    batches = [windows(text, *sizes, -1 - i, device) for i in range(preset.validation)]
    return statistics.fmean(loss_of(model, ids).item() for ids in batches)


def run_all(
    preset: Preset, arms: Sequence[str], seeds: int, build: Build, quiet: bool = False
) -> list[Run]:
    """Every arm, seed by seed."""
    texts = corpus()
    with bar(quiet) as progress:
        return [train(preset, arm, seed, build, texts, progress)
                for seed in range(seeds) for arm in arms]  # fmt: skip


def gaps(runs: list[Run], arm: str) -> list[float]:
    """Held out loss minus that of the first arm from the same seed."""
    base = {run.seed: run.validation for run in runs if run.arm == runs[0].arm}
    return [run.validation - base[run.seed] for run in runs if run.arm == arm]


def table(runs: list[Run]) -> Table:
    """A row for each arm; the noise is the deviation of the first one over its seeds."""
    first = runs[0].arm
    base = [run.validation for run in runs if run.arm == first]
    noise = f"{statistics.stdev(base):.4f}" if len(base) > 1 else "one seed"
    columns = ("", "training", "held out", f"gap to {first}", "in %", "per seed", "s per run")
    title = f"loss in nats per byte; stdev of {first} between seeds: {noise}"
    result = Table(*columns, title=title)
    for arm in dict.fromkeys(run.arm for run in runs):
        own, found = [run for run in runs if run.arm == arm], gaps(runs, arm)
        gap = statistics.fmean(found)
        result.add_row(
            arm,
            f"{statistics.fmean(run.training for run in own):.4f}",
            f"{statistics.fmean(run.validation for run in own):.4f}",
            *(("", "", "") if arm == first else
              (f"{gap:+.4f}", f"{100 * gap / statistics.fmean(base):+.2f}",
               " ".join(f"{value:+.4f}" for value in found))),
            f"{statistics.fmean(run.seconds for run in own):.0f}",
        )  # fmt: skip
    return result


def plot(runs: list[Run], path: Path) -> None:
    """Smoothed curves of the first seed, and their distance from the first arm."""
    shown = [run for run in runs if run.seed == runs[0].seed]
    width = max(1, len(shown[0].curve) // 20)

    def smooth(curve: list[float]) -> list[float]:
        return [statistics.fmean(curve[i : i + width]) for i in range(len(curve) - width + 1)]

    figure, left, right = panels(12, 4.5)
    base = smooth(shown[0].curve)
    steps = range(width, width + len(base))
    for run in shown:
        own = smooth(run.curve)
        left.plot(steps, own, label=run.arm, linewidth=1)
        difference = [1000 * (a - b) for a, b in zip(own, base, strict=True)]
        right.plot(steps, difference, label=run.arm, linewidth=1)
    left.set(xlabel="step", ylabel="training loss, nats per byte", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    right.set(xlabel="step", ylabel=f"above {shown[0].arm}, 1e-3 nats")
    figure.suptitle(f"mean over {width} steps, seed {shown[0].seed}")
    save(figure, path)


def options(description: str, presets: dict[str, Preset], out: str) -> argparse.ArgumentParser:
    """What every training example can be told."""
    parser = argparse.ArgumentParser(description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--preset", choices=presets, default=default)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of those of the preset")
    parser.add_argument("--out", type=Path, default=Path("build") / out)
    return parser


def chosen(args: argparse.Namespace, presets: dict[str, Preset]) -> Preset:
    """The preset that `options` were given."""
    preset = presets[args.preset]
    return dataclasses.replace(preset, steps=args.steps) if args.steps else preset


def report(runs: list[Run], preset: Preset, parameters: int, out: Path) -> None:
    """Write curves and figure, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(run) for run in runs]
    kept = {"preset": dataclasses.asdict(preset), "runs": rows}
    (out / "runs.json").write_text(json.dumps(kept))
    plot(runs, out / "loss.png")
    Console().print(table(runs))
    tokens = preset.steps * preset.batch * preset.length
    print(f"{parameters} parameters, {tokens / parameters:.1f} bytes of text per parameter; "
          f"curves and figure in {out}")  # fmt: skip
