"""The attention kernel over vLLM's cache in the simulator: values, every code and zero point, and
no finding."""

from __future__ import annotations

import pytest
import torch

from attention_problems import attention
from test_sim_attention import check, draw
from vllm_problems import allocate, make
from wlib.vllm_cache import VllmInt4Cache


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1)])
def test_causal(dim: int, heads: int, kv_heads: int, half: bool) -> None:
    s = make([65, 1, 7], [65, 64, 200], heads=heads, kv_heads=kv_heads, dim=dim)
    check(s, dim + heads, allow_fp16_scores=half)


@pytest.mark.parametrize(
    ("place", "block_size"), [("heads", 256), ("tokens", 16), ("pairs", 48), ("apart", 64)]
)
def test_blocks_of_any_size_anywhere(place: str, block_size: int) -> None:
    check(make([3, 0, 70, 5], [70, 7, 0, 270], block_size=block_size, place=place), ctas=3)


@pytest.mark.parametrize("window", [(0, 0), (64, 5)])
def test_windows(window: tuple[int, int]) -> None:
    check(make([70, 9], [350, 64]), window[1], causal=False, window_size=window)


@pytest.mark.parametrize("dim", [64, 128])
def test_new_keys_sinks_softcap_and_splits(dim: int) -> None:
    s = make([70, 3], [100, 365], new=True, dim=dim)
    check(s, sinks=torch.linspace(-1, 1, 4), splits=2)
    check(s, 1, softcap=5.0, window_size=(20, 0))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_every_code_and_zero_point_is_exact(dim: int) -> None:
    """One query per key that it alone sees, a score and values that are integers."""
    kv = allocate("heads", 16, 16, 1, dim)
    tokens = 256
    rng = torch.Generator().manual_seed(dim)
    one = torch.ones(()).view(torch.int32)
    for codes, scales in ((kv.k, kv.k_scale), (kv.v, kv.v_scale)):
        codes[:] = torch.randint(0, 256, codes.shape, generator=rng, dtype=torch.uint8)
        zeros = torch.randperm(16, generator=rng).int().view(1, 16, 1).expand(16, 16, 1)
        scales[:] = (one | zeros).view(torch.float32)
        both = torch.stack((codes & 15, codes >> 4)).int() * 16 + zeros[..., None]
        assert both.unique().numel() == 256
    s = make([tokens], [tokens], heads=1, kv_heads=1, dim=dim)
    channel = torch.arange(tokens) % dim
    q8 = torch.nn.functional.one_hot(channel, dim).float().to(s.q8.dtype)[:, None]
    keys, values = kv.dequantize()
    s = s._replace(q8=q8, q_scale=torch.ones(tokens, 1), kv=kv)
    s.arguments["q_scale"] = s.q_scale
    s.arguments["page_table"] = torch.arange(16, dtype=torch.int32)[None]
    out, lse, findings = attention(s, window_size=(0, 0), softmax_scale=1.0, simulation=draw(dim))
    assert findings == []
    # The row's one probability is 2^8 but for the rounding of its exponent, up to 15 log2(e) + 8.
    torch.testing.assert_close(out, values, rtol=32 * 2.0**-23, atol=0)
    score = keys[torch.arange(tokens), 0, channel]
    torch.testing.assert_close(lse[0], score, rtol=1e-6, atol=1e-6)


def test_tokens_outside_the_window_and_behind_the_last_are_not_read() -> None:
    s = make([70], [600])
    table = s.arguments["page_table"].clone()
    first = (600 - 70 - 100) // 64 * 64 // 16  # blocks of whole steps that nobody sees
    table[0, :first] = 1 << 20
    check(s, page_table=table, window_size=(100, 0))
    table[0, first] = 1 << 20
    _, _, findings = attention(s, page_table=table, window_size=(100, 0))
    assert {f.check for f in findings} == {"global-bounds"}


def test_the_last_row_ends_the_cache() -> None:
    """A cache whose tensors end with the last token: a byte further would be out of bounds."""
    s = make([3], [48], block_size=16)
    own = s.arguments["page_table"][0].long()
    copies = [getattr(s.kv, name)[own].clone() for name in ("k", "v", "k_scale", "v_scale")]
    s.arguments["page_table"] = torch.arange(3, dtype=torch.int32)[None]
    check(s._replace(kv=VllmInt4Cache(*copies)))  # type: ignore[arg-type]


@pytest.mark.parametrize("splits", [1, 3])
def test_result_does_not_depend_on_the_schedule(splits: int) -> None:
    s = make([65, 1, 7], [365, 64, 200], new=True, dim=128)
    first = attention(s, splits=splits, ctas=1)
    for seed in range(4):
        again = attention(s, splits=splits, ctas=1 + seed, simulation=draw(seed))
        assert again.findings == []
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)
