"""The cache's writer and the quantiser of queries on the GPU: the CPU's bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
import wlib.nn

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DIMS = (64, 128, 256)


def heads(seed: int, tokens: int, count: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Random [tokens, count, dim] whose rows lie apart."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, count + 1, dim, generator=draw).to(dtype)[:, :count]


def factors(count: int, dim: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    mean, smooth = torch.randn(2, count, dim, generator=draw)
    return {"k_mean": mean, "k_smooth": smooth.exp()}


def cuda(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in values.items()}


def check_append(k: Tensor, v: Tensor, calls: list[Tensor], blocks: int, **given: Tensor) -> None:
    """Tokens for the slots of each call, one call after another, on both devices."""
    caches = [
        wlib.Int4KVCache.allocate(blocks, k.shape[1], k.shape[2], device)
        for device in ("cpu", "cuda")
    ]
    first = 0
    for slots in calls:
        part = slice(first, first + len(slots))
        caches[0].append(k[part], v[part], slots, **given)
        caches[1].append(k.cuda()[part], v.cuda()[part], slots.cuda(), **cuda(given))
        given = {}
        first = part.stop
    for name in ("k", "v", "k_scale", "v_scale"):
        assert torch.equal(getattr(caches[1], name).cpu(), getattr(caches[0], name)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("smooth", [False, True])
def test_append(dtype: torch.dtype, dim: int, smooth: bool) -> None:
    """Blocks begun by one call and filled by others, in random order, tokens skipped."""
    order = torch.randperm(700, generator=torch.Generator().manual_seed(dim))
    order[::7] = -1
    k, v = (heads(seed, 700, 5, dim, dtype) for seed in (1, 2))
    calls = list(order.split([1, 63, 300, 336]))
    check_append(k, v, calls, 11, **factors(5, dim) if smooth else {})


def test_append_of_more_tokens_than_a_launch_takes() -> None:
    tokens = 40000
    k, v = (heads(seed, tokens, 2, 64, torch.bfloat16) for seed in (1, 2))
    check_append(k, v, [torch.arange(tokens) + 5], tokens // 64 + 2)


def test_the_last_token_of_a_slot_stays() -> None:
    k, v = (heads(seed, 5000, 1, 128, torch.float16) for seed in (1, 2))
    slots = torch.randint(0, 128, (5000,), generator=torch.Generator().manual_seed(3))
    check_append(k, v, [slots], 2)


def test_slots_beyond_the_cache_are_skipped() -> None:
    k, v = (heads(seed, 8, 2, 64, torch.float32).cuda() for seed in (1, 2))
    beyond = torch.tensor([3, 128, 129, 4, 10**12, -5, 127, 64], device="cuda")
    inside = torch.where(beyond < 128, beyond, -1)
    caches = [wlib.Int4KVCache.allocate(2, 2, 64, "cuda") for _ in range(2)]
    for kv, slots in zip(caches, (beyond, inside), strict=True):
        kv.append(k, v, slots)
    for name in ("k", "v", "k_scale", "v_scale"):
        assert torch.equal(getattr(caches[0], name), getattr(caches[1], name))
    assert caches[0].k_scale.count_nonzero() == 8  # four tokens of two heads


def test_append_and_attention_in_a_graph() -> None:
    """A chunk is written and attended to by what was captured, with new tokens in its buffers."""
    attention = wlib.nn.Int4PrefillAttention(4, 2, 64, 4, device="cuda", **factors(2, 64))
    given: dict[str, Any] = {
        "cu_seqlens_q": torch.tensor([0, 70], dtype=torch.int32, device="cuda"),
        "max_seqlen_q": 70,
        "seqlens_cached": torch.tensor([30], dtype=torch.int32, device="cuda"),
        "page_table": torch.tensor([[2, 0]], dtype=torch.int32, device="cuda"),
    }
    q, k, v = (torch.zeros(70, count, 64, device="cuda") for count in (4, 2, 2))
    attention(q, k, v, **given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v, **given)
    for seed, tensor in enumerate((q, k, v)):
        tensor.copy_(heads(seed, 70, tensor.shape[1], 64, torch.float32))
    graph.replay()
    assert torch.equal(out, attention(q, k, v, **given))
    assert out.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_queries(dtype: torch.dtype, dim: int, rope: bool, smooth: bool) -> None:
    tokens = 333
    given: dict[str, Tensor] = {}
    if smooth:
        given["k_smooth"] = factors(2, dim)["k_smooth"]
    if rope:
        draw = torch.Generator().manual_seed(7)
        angle = torch.rand(tokens, dim // 2, generator=draw) * 6
        given |= {"cos": angle.cos(), "sin": angle.sin()}
    q = heads(3, tokens, 6, dim, dtype)
    q[5] = 0
    expected, expected_scale = wlib.quantize_q_fp8(q, **given)
    q8, scale = wlib.quantize_q_fp8(q.cuda(), **cuda(given))
    assert torch.equal(q8.cpu().view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(scale.cpu(), expected_scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_queries_and_keys_stay_in_their_head(bad: float) -> None:
    q = heads(3, 20, 2, 64, torch.float32)
    q[7, 1, 3] = bad
    results = [wlib.quantize_q_fp8(x) for x in (q, q.cuda())]
    (expected, expected_scale), (q8, scale) = results
    assert torch.equal(q8.cpu().view(torch.uint8), expected.view(torch.uint8))
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=0, atol=0, equal_nan=True)
    caches = []
    for x in (q, q.cuda()):
        kv, _ = wlib.quantize_kv_int4(x, x, torch.tensor([0, 20], dtype=torch.int32))
        caches.append(kv)
    assert torch.equal(caches[0].k, caches[1].k.cpu())
    assert torch.equal(caches[0].v, caches[1].v.cpu())
