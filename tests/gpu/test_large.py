"""Outputs of more than 2^31 elements in every family, whose ends are those of a small call."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import wlib

LIMIT = 2**31


@pytest.fixture
def memory() -> Iterator[None]:
    """Twenty gigabytes of it, which are given back."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of device memory")
    yield
    torch.cuda.empty_cache()


def small_integers(*shape: int, device: str) -> Tensor:
    draw = torch.Generator(device).manual_seed(7)
    return torch.randint(-2, 3, shape, device=device, generator=draw, dtype=torch.int8).bfloat16()


def ends(count: int) -> tuple[slice, slice]:
    """The first rows and the last."""
    return slice(0, 3), slice(count - 3, count)


def same_ends(op: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, least: int) -> None:
    """Check that an op that sees each row alone gives the first and the last rows the same bits."""
    results = op(x)
    assert max(t.numel() for t in (x, *results)) > least
    for rows in ends(len(x)):
        for large, small in zip(results, op(x[rows].contiguous()), strict=True):
            assert torch.equal(large[rows].view(torch.uint8), small.view(torch.uint8))


def quantise(m: int, k: int, least: int, device: str) -> None:
    x = small_integers(m, k, device=device)
    same_ends(wlib.fp8_quantize, x, least)

    def fp4(x: Tensor) -> tuple[Tensor, Tensor]:
        q = wlib.fp4_quantize(x)
        return q.codes, q.scales

    same_ends(fp4, x, least)


def fp4_matmul(m: int, n: int, least: int, device: str) -> None:
    k = 128
    x, w = (small_integers(rows, k, device=device) for rows in (m, n))
    weight = wlib.fp4_quantize(w)
    same_ends(lambda x: (wlib.fp4_matmul(wlib.fp4_quantize(x), weight),), x, least)


def atoms(layers: int, n: int, least: int, device: str) -> None:
    one = small_integers(1, n, n, device=device)
    coef = (torch.arange(layers, device=device) % 8 - 4).float()[:, None]
    weights = wlib.atoms_reconstruct(one, coef)
    assert weights.numel() > least
    for layer in (0, layers // 2, layers - 1):
        assert torch.equal(weights[layer], one[0] * coef[layer].bfloat16())
    d_atoms, d_coef = torch.ops.wlib.atoms_reconstruct_backward(weights, one, coef)
    squares = coef.double().square().sum()
    assert torch.equal(d_atoms[0].double(), (one[0].double() * squares).to(d_atoms.dtype).double())
    exact = one.double().square().sum() * coef.double()
    torch.testing.assert_close(d_coef.double(), exact, rtol=1e-4, atol=0)


def linear_over_atoms(m: int, n: int, least: int, device: str) -> None:
    x, stack = small_integers(m, 128, device=device), small_integers(2, n, 128, device=device)
    coef = torch.tensor([1.0, 2.0], device=device)
    y = wlib.atoms_linear(x, stack, coef)
    assert y.numel() > least
    weight = (stack[0] + 2 * stack[1]).double()
    for rows in ends(m):
        assert torch.equal(y[rows], (x[rows].double() @ weight.t()).to(y.dtype))


def rebuilt(n: int, least: int, device: str) -> None:
    base = small_integers(n, n, device=device)
    down, up = (small_integers(*shape, device=device) for shape in ((1, n), (n, 1)))
    merged = wlib.rebuild.lora(base, down, up, scale=1.0)
    assert merged.numel() > least
    for rows in ends(n):
        assert torch.equal(merged[rows], base[rows] + up[rows] * down)


def sparse(m: int, n: int, least: int, device: str) -> None:
    support = wlib.sparse_support(n, 128, 0.1).to(device)
    values = small_integers(support.count, device=device)
    x = small_integers(m, 128, device=device)
    places = support.positions, support.offsets
    same_ends(lambda x: (torch.ops.wlib.tile_sparse_matmul(x, values, *places, n, 128),), x, least)


def attention(queries: int, heads: int, least: int, device: str) -> None:
    """All queries are the same, and so are all outputs."""
    draw = torch.Generator(device).manual_seed(3)
    k, v = (torch.randn(64, 1, 128, generator=draw, device=device) for _ in range(2))
    end = torch.tensor([0, 64], dtype=torch.int32, device=device)
    kv, table = wlib.quantize_kv_int4(k, v, end)
    one, scale = wlib.quantize_q_fp8(torch.ones(1, heads, 128, device=device))
    out = wlib.attention_prefill(
        one.expand(queries, heads, 128).contiguous(),
        kv,
        q_scale=scale.expand(queries, heads).contiguous(),
        cu_seqlens_q=torch.tensor([0, queries], dtype=torch.int32, device=device),
        max_seqlen_q=queries,
        seqused_k=end[1:],
        page_table=table,
        causal=False,
        return_lse=False,
    )
    assert out.numel() > least
    for rows in ends(queries):
        assert torch.equal(out[rows], out[:1].expand(3, -1, -1))


def cache(blocks: int, heads: int, least: int, device: str) -> None:
    """A block at the end of a large pool holds what one of a small pool holds."""
    draw = torch.Generator(device).manual_seed(4)
    k, v = (torch.randn(64, heads, 128, generator=draw, device=device) for _ in range(2))
    slots = torch.arange(64, device=device)
    large = wlib.Int4KVCache.allocate(blocks, heads, 128, device)
    small = wlib.Int4KVCache.allocate(1, heads, 128, device)
    assert large.k.numel() > least
    large.append(k, v, slots + 64 * (blocks - 1))
    small.append(k, v, slots)
    for part in ("k", "v", "k_scale", "v_scale"):
        assert torch.equal(getattr(large, part)[-1], getattr(small, part)[0])


def grouped(m: int, n: int, least: int, device: str) -> None:
    draw = torch.Generator(device).manual_seed(5)
    codes = torch.randint(256, (n, 64), dtype=torch.uint8, device=device, generator=draw)
    scale = torch.ones(n, 1, dtype=torch.bfloat16, device=device)
    weight = wlib.Int4Weight(codes, scale)
    stack = wlib.pack_experts([weight, weight])
    x = small_integers(m, 128, device=device).to(torch.float8_e4m3fn)
    x_scale = torch.ones(m, device=device)
    offsets = torch.tensor([0, m // 2, m], dtype=torch.int32, device=device)
    y = wlib.int4fp8_gemm_grouped(x, stack, x_scale, offsets)
    assert y.numel() > least
    for rows in ends(m):
        assert torch.equal(y[rows], (x[rows].double() @ weight.dequantize().double().t()).to(y))


CASES: dict[str, tuple[Callable[..., None], tuple[int, ...], tuple[int, ...]]] = {
    # The check, sizes beyond 2^31 elements, and sizes for a CPU.
    "quantise": (quantise, (65_600, 32_768), (70, 256)),
    "fp4_matmul": (fp4_matmul, (65_600, 32_768), (70, 96)),
    "atoms": (atoms, (129, 4096), (17, 64)),
    "linear_over_atoms": (linear_over_atoms, (65_600, 32_768), (70, 96)),
    "rebuilt": (rebuilt, (46_400,), (96,)),
    "sparse": (sparse, (65_600, 32_768), (70, 96)),
    "attention": (attention, (262_400, 64), (70, 4)),
    "cache": (cache, (65_600, 8), (5, 2)),
    "grouped": (grouped, (65_600, 32_768), (70, 96)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("memory")
def test_beyond_2_to_31_elements(name: str) -> None:
    check, sizes, _ = CASES[name]
    check(*sizes, LIMIT - 1, "cuda")
