"""Generates text with a Llama before and after its weights, keys and values become INT4.

The model is a checkpoint of Hugging Face's in a folder (`--model`: config.json, safetensors,
tokenizer.json) or a small one that is trained first, by the code and on the text of
`small_llama.py`. Three times, in BF16, with INT4 weights and FP8 activations (GPTQ on training
text), and with an INT4 cache of keys and values on top: the perplexity on held out files, every
token of which sees a cache that was filled chunk by chunk; the bytes; the time to the first token;
and what the model writes.

    python examples/llama_infer.py [--model FOLDER] [--preset cpu|cuda] [--steps 300]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import small_llama
from figures import panels, save
from llama_model import Llama
from small_llama import Preset, corpus, windows
from wlib.quant import Recipe, quantize_model

Decode = Callable[[list[int]], str]  # tokens to text
ARMS = ("BF16", "INT4 weights", "and INT4 KV")
REPEATS = 3  # of the time to the first token; the median counts
TEXT_BYTES = 4_000_000  # what a tokenizer is given of each text
PRESETS = {
    "test": Preset(64, 1, 128, 2, 128, 4, 200, 1e-2, 1),
    "cpu": Preset(128, 2, 384, 4, 256, 8, 400, 3e-3, 8),
    "cuda": Preset(640, 10, 1792, 6, 512, 128, 4000, 1.2e-3, 64),
}


@dataclass(frozen=True)
class Sizes:
    """Of a comparison, in tokens; an own model is trained on windows of `length`."""

    length: int  # of a window of the held out text
    windows: int
    calibration: int  # windows of the training text
    chunk: int  # tokens of a prompt that are taken at once
    prompts: tuple[int, ...]  # lengths whose first token is timed
    written: int


SIZES = {
    "test": Sizes(128, 4, 4, 48, (32, 96), 16),
    "cpu": Sizes(256, 32, 16, 64, (64, 128, 192), 64),
    "cuda": Sizes(512, 64, 64, 256, (128, 256, 384), 128),
}


@dataclass(frozen=True)
class Result:
    """What one arm gave."""

    arm: str
    losses: list[float]  # nats by position, the mean of all windows
    weight_bytes: int
    cache_bytes: int  # per token
    first_token: dict[int, float]  # milliseconds by the length of the prompt
    written: list[int]  # tokens behind the longest prompt

    @property
    def perplexity(self) -> float:
        return math.exp(statistics.fmean(self.losses))


def prefill(model: Llama, ids: Tensor, chunk: int) -> Tensor:
    """What the head reads, [T, width], of tokens that enter the empty cache chunk by chunk."""
    parts = [model.model(part, i * chunk) for i, part in enumerate(ids.split(chunk))]
    return torch.cat(parts)


def choose(model: Llama, hidden: Tensor) -> int:
    """The likeliest token behind the last one."""
    return int(model.lm_head(hidden[-1:]).argmax())


@torch.no_grad()
def generate(model: Llama, prompt: Tensor, count: int, chunk: int) -> list[int]:
    """So many tokens behind a prompt, the likeliest each time."""
    written = [choose(model, prefill(model, prompt, chunk))]
    while len(written) < count:
        last = torch.tensor(written[-1:], device=prompt.device)
        written.append(choose(model, model.model(last, len(prompt) + len(written) - 1)))
    return written


@torch.no_grad()
def losses(model: Llama, window: Tensor, chunk: int) -> Tensor:
    """Nats of each token of a window but the first, float32."""
    logits = model.lm_head(prefill(model, window[:-1], chunk))
    return F.cross_entropy(logits.float(), window[1:], reduction="none")


def first_token(model: Llama, prompt: Tensor, chunk: int) -> float:
    """Milliseconds from the prompt to the token behind it, which waits for the device."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        generate(model, prompt, 1, chunk)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure(model: Llama, arm: str, pieces: Tensor, sizes: Sizes, quiet: bool) -> Result:
    """One arm on windows [n, length + 1]."""
    each = [losses(model, piece, sizes.chunk) for piece in track(pieces, arm, disable=quiet)]
    prompts = {n: pieces[0, :n] for n in sizes.prompts}
    return Result(
        arm,
        torch.stack(each).mean(0).tolist(),
        model.weight_bytes(),
        model.cache_bytes(),
        {n: first_token(model, prompt, sizes.chunk) for n, prompt in prompts.items()},
        generate(model, prompts[max(prompts)], sizes.written, sizes.chunk),
    )


def compare(
    model: Llama, texts: tuple[Tensor, Tensor], sizes: Sizes, quiet: bool = False
) -> list[Result]:
    """All arms, one after the other; the model is that of the last one afterwards.

    Args:
        model: in floating point.
        texts: tokens for the calibration, and held out ones.
        sizes: of the comparison.
        quiet: show no progress.
    """
    device = str(model.lm_head.weight.device)
    calibration = list(windows(texts[0], sizes.calibration, sizes.length, 0, device)[:, :-1])
    pieces = windows(texts[1], sizes.windows, sizes.length, 1, device)
    room = max(sizes.length, max(sizes.prompts) + sizes.written)
    model.use_floats(room)
    results = [measure(model, ARMS[0], pieces, sizes, quiet)]
    recipe = Recipe(group_size(model), rounding="gptq", skip=("lm_head",))
    quantize_model(model, recipe, calibration, progress=not quiet)
    results.append(measure(model, ARMS[1], pieces, sizes, quiet))
    model.use_int4(room, model.key_means(calibration))
    results.append(measure(model, ARMS[2], pieces, sizes, quiet))
    return results


def group_size(model: Llama) -> int:
    """The largest of the usual ones that divides what the linear layers take."""
    c = model.model.config
    inputs = (c.width, c.inner, c.heads * c.head_dim)
    return next(size for size in (128, 64, 32, 1) if not any(k % size for k in inputs))


def train(preset: Preset, texts: tuple[Tensor, Tensor], quiet: bool = False) -> Llama:
    """A small model in bfloat16, trained from seed 0."""
    torch.manual_seed(0)
    small = small_llama.Llama(preset)
    with small_llama.bar(quiet) as progress:
        small_llama.train(preset, "training", 0, lambda arm, seed: small, texts, progress)
    return Llama.from_small(small, torch.bfloat16)


def tokenized(folder: Path, texts: tuple[Tensor, Tensor]) -> tuple[Decode, tuple[Tensor, Tensor]]:
    """The decoder of a checkpoint's tokenizer.json, and its tokens of the bytes."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise SystemExit("--model reads tokenizer.json with the package tokenizers") from None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    strings = (bytes(t[:TEXT_BYTES].tolist()).decode(errors="replace") for t in texts)
    first, second = (tokenizer.encode(s, add_special_tokens=False).ids for s in strings)
    return tokenizer.decode, (torch.tensor(first), torch.tensor(second))


def bytes_to_text(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def table(results: list[Result], device: str) -> Table:
    """A row for each arm."""
    prompts = list(results[0].first_token)
    times = (f"{n}, ms" for n in prompts)
    columns = ("", "perplexity", "change", "weights, MB", "cache, B", *times)
    title = "bytes of cache per token; time to the first token behind so many"
    found = Table(*columns, title=title, caption=f"times on {device}")
    for result in results:
        change = result.perplexity / results[0].perplexity - 1
        found.add_row(
            result.arm,
            f"{result.perplexity:.4f}",
            "" if result is results[0] else f"{change:+.2%}",
            f"{result.weight_bytes / 1e6:.3f}",
            f"{result.cache_bytes:,}",
            *(f"{result.first_token[n]:.1f}" for n in prompts),
        )
    return found


def plot(results: list[Result], device: str, path: Path) -> None:
    """What each arm adds to the loss along the context, and the times."""
    figure, left, right = panels(10, 3.5)
    width = max(1, len(results[0].losses) // 16)
    base = torch.tensor(results[0].losses).split(width)
    for i, result in enumerate(results):
        look = {"label": result.arm, "color": f"C{i}"}
        if i:
            own = torch.tensor(result.losses).split(width)
            added = [float((x - y).mean()) for x, y in zip(own, base, strict=True)]
            left.step([j * width for j in range(len(added))], added, where="post", **look)
        right.plot(*zip(*result.first_token.items(), strict=True), marker="o", **look)
    left.set(xlabel="position", ylabel=f"nats above {results[0].arm}")
    right.set(xlabel="tokens of the prompt", ylabel="ms to first token", title=f"on {device}")
    right.set_ylim(bottom=0)
    save(figure, path)


def device_name() -> str:
    """What the figures of time are of."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU, {torch.get_num_threads()} threads; they say nothing of a GPU"


def main(arguments: list[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", type=Path, help="a folder; default: train a small one")
    parser.add_argument("--preset", choices=PRESETS, default=default)
    parser.add_argument("--steps", type=int, help="of the training, instead of the preset's")
    parser.add_argument("--out", type=Path, default=Path("build/llama_infer"))
    args = parser.parse_args(arguments)
    texts = corpus()
    to_text: Decode = bytes_to_text
    if args.model:
        model = Llama.from_folder(args.model, default)
        to_text, texts = tokenized(args.model, texts)
    else:
        model = train(small_llama.chosen(args, PRESETS), texts)
    results = compare(model, texts, SIZES[args.preset])
    args.out.mkdir(parents=True, exist_ok=True)
    kept = {"device": device_name(), "results": [dataclasses.asdict(r) for r in results]}
    (args.out / "results.json").write_text(json.dumps(kept))
    plot(results, device_name(), args.out / "llama_infer.png")
    Console().print(table(results, device_name()))
    for result in results:
        print(f"{result.arm}: {to_text(result.written)!r}")
    print(f"results and figure in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
