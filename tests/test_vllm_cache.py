"""vLLM's INT4 cache: its bits, its rotation, and attention over it against float64."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from torch import Tensor

import wlib
from test_prefill import check
from vllm_problems import PLACES, allocate, make
from wlib.vllm_cache import rotation_signs


def test_a_row_by_hand() -> None:
    """Bytes and scales written by this test alone; every code with every zero point."""
    codes = torch.arange(16).repeat(4)  # channels 0, 1, 2, ...
    packed = (codes[::2] | codes[1::2] << 4).to(torch.uint8)
    assert packed[:3].tolist() == [0x10, 0x32, 0x54]
    scale = 0.75
    bits = struct.unpack("<I", struct.pack("<f", scale))[0]
    stored = [struct.unpack("<f", struct.pack("<I", bits + zero))[0] for zero in range(16)]
    kv = allocate("heads", 1, 16, 1, 64)
    for tensor in (kv.k, kv.v):
        tensor[:] = packed
    kv.k_scale[0, :, 0] = torch.tensor(stored)
    kv.v_scale[:] = kv.k_scale * 2
    k, v = kv.dequantize()
    expected = (codes.float() - torch.arange(16.0)[:, None]) * scale
    assert torch.equal(k[:, 0], expected)
    assert torch.equal(v[:, 0], expected * 2)
    # A query that picks one channel finds the same numbers by attention: q 1, one key at a time.
    for token in (0, 7, 15):
        arguments = {
            "q_scale": torch.ones(1, 1),
            "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32),
            "max_seqlen_q": 1,
            "seqused_k": torch.tensor([token + 1], dtype=torch.int32),
            "page_table": torch.zeros(1, 1, dtype=torch.int32),
        }
        q8 = torch.zeros(1, 1, 64)
        q8[0, 0, 13] = 1
        out, lse = wlib.attention_prefill(
            q8.to(torch.float8_e4m3fn), kv, **arguments, softmax_scale=1.0, window_size=(0, 0),
            out_dtype=torch.float32,
        )  # fmt: skip
        assert torch.equal(out[0, 0], v[token, 0])
        assert lse.item() == k[token, 0, 13]


def test_views_share_the_engines_memory() -> None:
    for shape in ((3, 2, 16, 136), (3, 2, 16, 2, 68)):
        whole = torch.zeros(shape, dtype=torch.int8)
        kv = wlib.VllmInt4Cache.from_vllm(whole)
        assert (kv.block_size, kv.num_kv_heads, kv.head_dim) == (16, 2, 128)
        start, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
        for tensor in (kv.k, kv.v, kv.k_scale, kv.v_scale):
            assert start <= tensor.data_ptr() < end
        kv.append(torch.ones(1, 2, 128), torch.ones(1, 2, 128), torch.tensor([17]))
        rows = whole[1, :, 1] if len(shape) == 4 else whole[1, :, 1].transpose(0, 1).flatten(1)
        assert (rows != 0).any(1).all()
        rows.zero_()
        if len(shape) == 5:
            whole[1, :, 1] = 0
        assert not whole.any()  # nothing but that token was written


@pytest.mark.parametrize("place", PLACES)
def test_append_against_its_definition(place: str) -> None:
    torch.manual_seed(0)
    kv = allocate(place, 4, 48, 3, 64)
    k, v = torch.randn(2, 60, 3, 64)
    k[4] = 0.25  # channels 0 of the transform only: the rest is zero
    slots = torch.randperm(4 * 48)[:60]
    slots[7] = -1
    kv.append(k, v, slots)
    own = slots >= 0
    for got, x in zip(kv.dequantize(), (k, v), strict=True):
        exact = matrix(64) @ (rotation_signs(64).double()[:, None] * x.double()[..., None])
        exact = exact[..., 0][own]
        step = (exact.amax(-1, keepdim=True) - exact.amin(-1, keepdim=True)) / 15
        # A code, and a zero point, to the nearest integer; the scale without its last four bits.
        assert ((got[slots[own]] - exact).abs() <= step * (1 + 1e-4) + 1e-5).all()
        inside = (got[slots[own]] - exact).abs() <= step * 0.501 + 1e-5
        assert inside.double().mean() > 0.95  # clamped at the ends of the range only
    untouched = torch.ones(4 * 48, dtype=torch.bool)
    untouched[slots[own]] = False
    assert (kv.k[untouched.view(4, 48)] == 255).all()
    assert kv.v_scale[untouched.view(4, 48)].isnan().all()


def matrix(dim: int) -> Tensor:
    """Sylvester's Hadamard matrix."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < dim:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_rotation(dim: int) -> None:
    torch.manual_seed(0)
    kv = allocate("heads", 1, 16, 1, dim)
    signs = rotation_signs(dim)
    assert set(signs.tolist()) == {1.0, -1.0}
    q, x = torch.randn(3, 2, dim), torch.randn(2, dim)
    exact = (q.double() * signs) @ matrix(dim) / dim
    torch.testing.assert_close(kv.rotate_queries(q).double(), exact, rtol=0, atol=1e-6)
    rotated = (x * signs) @ matrix(dim).float()
    torch.testing.assert_close(kv.restore(rotated), x, rtol=0, atol=1e-5)
    assert kv.restore(rotated.bfloat16()).dtype == torch.bfloat16


def test_signs_are_those_of_a_fixed_seed() -> None:
    """What torch's generator gave when vLLM's format was written down here; another torch that
    draws other signs could not read caches of this one's."""
    negative = sum(1 << i for i, sign in enumerate(rotation_signs(128).tolist()) if sign < 0)
    assert negative == 0x9480ABC759BBC2937F7FCA4E9A8CA6F2
    assert torch.equal(rotation_signs(128)[:64], rotation_signs(64))


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (3, 3)])
def test_causal(dim: int, heads: int, kv_heads: int) -> None:
    check(make([65, 1, 7], [65, 64, 200], heads=heads, kv_heads=kv_heads, dim=dim))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("block_size", [16, 48, 64, 256])
def test_blocks_of_any_size_anywhere(place: str, block_size: int) -> None:
    check(make([3, 0, 70, 5], [70, 7, 0, 270], block_size=block_size, place=place))


@pytest.mark.parametrize("window", [(0, 0), (63, 0), (64, 5), (-1, 3)])
def test_windows(window: tuple[int, int]) -> None:
    check(make([70, 9], [150, 64]), causal=False, window_size=window)


def test_options() -> None:
    s = make([33, 70], [130, 20], new=True)
    check(s, softcap=5.0)
    check(s, sinks=torch.linspace(-1, 1, 4), softmax_scale=0.01)
    check(s, window_size=(20, 0))


def test_queries_and_output_in_the_models_own_space() -> None:
    """The whole way: 4-bit keys and values, and queries in E4M3, against float64 attention."""
    torch.manual_seed(0)
    q, k, v = torch.randn(40, 4, 128), torch.randn(40, 2, 128), torch.randn(40, 2, 128)
    kv = allocate("heads", 3, 16, 2, 128)
    kv.append(k, v, torch.arange(40))
    q8, q_scale = wlib.quantize_q_fp8(kv.rotate_queries(q))
    out, lse = wlib.attention_prefill(
        q8,
        kv,
        q_scale=q_scale,
        cu_seqlens_q=torch.tensor([0, 40], dtype=torch.int32),
        max_seqlen_q=40,
        seqused_k=torch.tensor([40], dtype=torch.int32),
        page_table=torch.tensor([[0, 1, 2]], dtype=torch.int32),
        out_dtype=torch.float32,
    )
    own = (t.double().transpose(0, 1) for t in (q, *(t.repeat_interleave(2, 1) for t in (k, v))))
    query, key, value = own
    scores = query @ key.mT / math.sqrt(128)
    scores.masked_fill_(torch.ones(40, 40).triu(1).bool(), -math.inf)
    want = (scores.softmax(-1) @ value).transpose(0, 1)
    # 15 steps over five standard deviations: values, and through the scores keys, are 0.1 off.
    assert (kv.restore(out) - want).norm() <= 0.15 * want.norm()
    assert (lse - scores.logsumexp(-1)).abs().max() <= 0.3
