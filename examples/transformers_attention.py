"""INT4 keys and values and FP8 queries in any transformers model: what do they cost in quality?

`register()` makes "wlib_int4" an attention implementation of transformers. In every layer and call
it quantises the keys and values it is handed, all of them, and attends over them. The cache that
transformers keeps stays as it is: this shows what the format does to a model's outputs, not what it
saves. For that, `wlib.nn.Int4PrefillAttention` holds the INT4 cache itself.

    python examples/transformers_attention.py [--model PATH] [--device cuda]

compares the logits of a model, by default a random small Llama, with those of its own attention.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wlib

NAME = "wlib_int4"
HEAD_DIMS = (64, 128, 256)


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
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = -1 if sliding_window is None else sliding_window - 1
    attended = wlib.attention_prefill(
        q8,
        kv,
        q_scale=q_scale,
        cu_seqlens_q=starts_q,
        max_seqlen_q=query.shape[2],
        seqused_k=starts_k.diff(),
        page_table=page_table,
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


def register() -> str:
    """Make the implementation known to transformers; the name it has there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(NAME, int4_attention)
    # The mask that says which tokens are padding, and nothing else.
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME


def small_llama() -> nn.Module:
    """A Llama of random weights: 4 layers, 8 query heads of 64 channels over 2 KV heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


@torch.no_grad()
def compare(model: Any, ids: Tensor) -> dict[str, float]:
    """How the logits change with INT4 keys and values: relative RMSE, cosine, same first choice."""
    from rich.progress import Progress  # who only registers the attention does not need it

    with Progress() as progress:
        task = progress.add_task("comparing", total=2)
        before = model(ids).logits.double()
        progress.advance(task)
        model.set_attn_implementation(register())
        after = model(ids).logits.double()
        progress.advance(task)
    return {
        "relative RMSE": float((after - before).norm() / before.norm()),
        "cosine": float(F.cosine_similarity(before.flatten(), after.flatten(), dim=0)),
        "same first choice": float((before.argmax(-1) == after.argmax(-1)).double().mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", help="a folder that transformers can load; default: random")
    parser.add_argument("--device", default=device, help="default: cuda if present, else cpu")
    options = parser.parse_args(arguments)
    if options.model:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    else:
        model = small_llama()
    model = model.to(options.device)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, 300), generator=rng)
    for name, value in compare(model, ids.to(options.device)).items():
        print(f"{name:>18}  {value:.5f}")


if __name__ == "__main__":
    main()
