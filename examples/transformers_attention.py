"""INT4 keys and values and FP8 queries in any transformers model: what do they cost in quality?

`register()` makes "wlib_int4" an attention implementation of transformers. In every layer and call
it quantises the keys and values it is handed, all of them, and attends over them. The cache that
transformers keeps stays as it is: this shows what the format does to a model's outputs, not what it
saves. For that, `wlib.nn.Int4PrefillAttention` holds the INT4 cache itself.

    python examples/transformers_attention.py [--model PATH] [--device cuda] [--out FOLDER]

compares a model, by default a random small Llama, with what it computes with its own attention. It
reads its tokens in chunks, once with INT4 everywhere and once as an engine may serve it: a chunk's
own keys and values in FP8, those of the chunks before it in INT4.
"""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

NAME = "wlib_int4"
ARMS = {NAME: "INT4", f"{NAME}_fp8": "INT4, the chunk's own in FP8"}
HEAD_DIMS = (64, 128, 256)
CHUNK, CHUNKS = 96, 4  # tokens


def int4_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    new_keys: Literal["int4", "fp8"] = "int4",
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer; its `is_causal` counts where the argument is None.
        query: floating point [B, heads, T, head_dim], at the end of the keys.
        key, value: [B, kv_heads, keys, head_dim]; head_dim is filled up to 64, 128 or 256.
        attention_mask: None, or [B, keys], zero where a token is padding, on either side.
        scaling: factor of the scores; None is head_dim ** -0.5.
        dropout: 0; there is none.
        sliding_window: None, or how many keys a query sees, its own included.
        softcap: None, or as `wlib.attention_prefill`.
        s_aux: None, or a score per head without a value.
        new_keys: "fp8" keeps the keys and values of the T queries in FP8, as the module
            `wlib.nn.Int4PrefillAttention` can.

    Returns:
        [B, T, heads, head_dim] in the query's dtype, zero for padding; no weights.

    Raises:
        ValueError: the mask is not one of padding, there is dropout, or head_dim is above 256.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"expected a mask [batch, keys], got {list(attention_mask.shape)}")
    if dropout:
        raise ValueError(f"expected dropout of 0, got {dropout}")
    head_dim = query.shape[-1]
    if head_dim > HEAD_DIMS[-1]:
        raise ValueError(f"expected head_dim of at most {HEAD_DIMS[-1]}, got {head_dim}")
    fill = next(dim for dim in HEAD_DIMS if dim >= head_dim) - head_dim
    batch, keys = key.shape[0], key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(batch, keys, dtype=torch.bool, device=query.device)
    seen = attention_mask.bool()
    asked = seen[:, keys - query.shape[2] :]
    # [tokens of all sequences, heads, head_dim]: no padding is quantised
    q = F.pad(query.transpose(1, 2)[asked], (0, fill))
    k, v = (F.pad(t.transpose(1, 2)[seen], (0, fill)) for t in (key, value))
    starts_q, starts_k = (F.pad(t.sum(1).cumsum(0), (1, 0)).int() for t in (asked, seen))
    kv, page_table = wlib.quantize_kv_int4(k, v, starts_k)
    q8, q_scale = wlib.quantize_q_fp8(q)
    cached, new = starts_k.diff(), dict[str, Tensor]()
    if new_keys == "fp8":
        cached = cached - starts_q.diff()
        for name, t in (("k_new", key), ("v_new", value)):
            own = F.pad(t[:, :, keys - query.shape[2] :].transpose(1, 2)[asked], (0, fill))
            new[name], new[f"{name}_scale"] = wlib.fp8_quantize(own)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = -1 if sliding_window is None else sliding_window - 1
    attended = wlib.attention_prefill(
        q8,
        kv,
        q_scale=q_scale,
        cu_seqlens_q=starts_q,
        max_seqlen_q=query.shape[2],
        seqused_k=cached,
        page_table=page_table,
        **new,
        softmax_scale=head_dim**-0.5 if scaling is None else scaling,
        causal=causal,
        window_size=(window, -1 if causal else window),
        softcap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.float(),
        out_dtype=query.dtype,
        return_lse=False,
    )
    assert isinstance(attended, Tensor)
    out = query.new_zeros(batch, query.shape[2], query.shape[1], head_dim)
    out[asked] = attended[..., :head_dim]
    return out, None


def register() -> None:
    """Make the implementations known to transformers, under the names in ARMS."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(NAME, int4_attention)
    AttentionInterface.register(f"{NAME}_fp8", functools.partial(int4_attention, new_keys="fp8"))
    for name in ARMS:
        # The mask that says which tokens are padding, and nothing else.
        AttentionMaskInterface.register(name, flash_attention_mask)


def small_llama() -> nn.Module:
    """A Llama of random weights: 4 layers, 8 query heads of 64 channels over 2 KV heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


@dataclass(frozen=True)
class Result:
    """How far one arm is from the model's own attention."""

    arm: str
    rmse: float  # of the logits, relative
    cosine: float
    same_choice: float  # share of the tokens whose largest logit stays
    by_position: list[float]  # relative RMSE of the logits of each token
    by_layer: list[float]  # of the hidden states behind each layer, the last ones normed


def distance(after: Tensor, before: Tensor, dims: Sequence[int]) -> Tensor:
    """Relative RMSE over some dimensions."""
    norm = torch.linalg.vector_norm
    return norm(after - before, dim=dims) / norm(before, dim=dims)


@torch.no_grad()
def run(model: Any, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [batch, tokens, vocabulary] and hidden states behind each layer, chunk by chunk."""
    # transformers is renaming it: both names are in use.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    outputs: list[Any] = []
    for chunk in ids.split(CHUNK, dim=1):
        past = {cache: outputs[-1][cache] if outputs else None}
        outputs.append(model(chunk, **past, use_cache=True, output_hidden_states=True))
    _, *states = zip(*(output.hidden_states for output in outputs), strict=True)
    logits = torch.cat([output.logits for output in outputs], 1)
    return logits.double(), [torch.cat(chunks, 1).double() for chunks in states]


def compare(model: Any, ids: Tensor) -> list[Result]:
    """How logits and hidden states change with each arm; the model keeps the last one's attention.

    Args:
        model: a causal language model of transformers.
        ids: int64 [batch, tokens].
    """
    from rich.progress import track  # who only registers the attention does not need it

    logits, states = run(model, ids)
    register()
    results = []
    for name, arm in track(ARMS.items(), "comparing"):
        model.set_attn_implementation(name)
        after, hidden = run(model, ids)
        errors = [distance(x, y, (0, 1, 2)) for x, y in zip(hidden, states, strict=True)]
        results.append(
            Result(
                arm,
                float(distance(after, logits, (0, 1, 2))),
                float(F.cosine_similarity(logits.flatten(), after.flatten(), dim=0)),
                float((logits.argmax(-1) == after.argmax(-1)).double().mean()),
                distance(after, logits, (0, 2)).tolist(),
                [float(error) for error in errors],
            )
        )
    return results


def table(results: Sequence[Result]) -> Table:
    """A row for each arm."""
    from rich.table import Table

    columns = ("", "relative RMSE", "cosine", "same first choice")
    found = Table(*columns, title="logits against those of the model's own attention")
    for r in results:
        found.add_row(r.arm, f"{r.rmse:.5f}", f"{r.cosine:.5f}", f"{r.same_choice:.5f}")
    return found


def plot(results: Sequence[Result], model: str, path: Path) -> Figure:
    """The error of the logits along the sequence, and of the hidden states along the layers."""
    from figures import panels, save

    figure, left, right = panels(10, 4)
    for result in results:
        left.plot([100 * error for error in result.by_position], linewidth=1, label=result.arm)
        layers = range(1, len(result.by_layer) + 1)
        right.plot(layers, [100 * error for error in result.by_layer], "o-", label=result.arm)
    for border in range(CHUNK, len(results[0].by_position), CHUNK):
        left.axvline(border, color="black", linestyle=":", linewidth=1)
    left.set(xlabel="position; dotted: a new chunk", ylabel="% relative RMSE of the logits")
    right.set(xlabel="layers passed", ylabel="% relative RMSE of the hidden states")
    right.locator_params("x", integer=True)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    figure.suptitle(f"{model} with quantised keys and values, against its own attention")
    return save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Compare, draw and print."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", help="a folder that transformers can load; default: random")
    parser.add_argument("--device", default=device, help="default: cuda if present, else cpu")
    parser.add_argument("--out", type=Path, default=Path("build/transformers_attention"))
    options = parser.parse_args(arguments)
    if options.model:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    else:
        model = small_llama()
    model = model.to(options.device)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, CHUNK * CHUNKS), generator=rng)
    results = compare(model, ids.to(options.device))
    plot(results, options.model or "random Llama", options.out / "transformers_attention.png")
    Console().print(table(results))
    print(f"figure in {options.out}")


if __name__ == "__main__":
    main()
