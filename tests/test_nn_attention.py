"""wlib.nn.Int4PrefillAttention: chunks against float64, copies, casts, files and refusals."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wlib
from test_prefill import extra_score, float32_bounds
from wlib.nn import Int4PrefillAttention
from wlib.reference import prefill as reference

HEADS, KV_HEADS, DIM = 4, 2, 64
CHUNKS = ([70, 0, 5], [1, 64, 130], [3, 1, 0])  # of three sequences
FLOATS = ("k_scale", "v_scale", "k_mean", "k_smooth", "sinks")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smoothing(seed: int = 5) -> dict[str, Tensor]:
    factors = normal(2, KV_HEADS, DIM, seed=seed)
    return {"k_mean": factors[0], "k_smooth": factors[1].exp()}


def module(**options: Any) -> Int4PrefillAttention:
    return Int4PrefillAttention(HEADS, KV_HEADS, DIM, 12, **options)


def pages(sequences: int = 3, blocks: int = 4) -> Tensor:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    return order[: sequences * blocks].view(sequences, blocks).int()


class Run:
    """Tokens of three sequences, chunk after chunk through a module, remembered in float64."""

    def __init__(self, attention: Int4PrefillAttention, rope: bool = False) -> None:
        self.attention, self.rope, self.table = attention, rope, pages()
        self.keys = [torch.empty(0, KV_HEADS, DIM) for _ in range(3)]
        self.values = list(self.keys)
        self.q, self.k, self.v = (
            normal(3, 200, heads, DIM, seed=i) for i, heads in ((2, HEADS), (3, KV_HEADS), (4, 2))
        )
        position = torch.arange(200.0)[:, None]
        angle = position / 100 ** (torch.arange(DIM // 2) / (DIM // 2))
        self.cos, self.sin = angle.cos(), angle.sin()
        self.done = [0, 0, 0]

    def arguments(self, chunk: list[int]) -> dict[str, Any]:
        """What `forward` takes for the next chunk."""
        parts = [slice(done, done + new) for done, new in zip(self.done, chunk, strict=True)]
        given: dict[str, Any] = {
            name: torch.cat([tokens[i, part] for i, part in enumerate(parts)])
            for name, tokens in (("q", self.q), ("k", self.k), ("v", self.v))
        }
        if self.rope:
            given["cos"] = torch.cat([self.cos[part] for part in parts])
            given["sin"] = torch.cat([self.sin[part] for part in parts])
        return given | {
            "cu_seqlens_q": torch.tensor([0, *chunk]).cumsum(0).int(),
            "max_seqlen_q": max(chunk),
            "seqlens_cached": torch.tensor(self.done, dtype=torch.int32),
            "page_table": self.table,
        }

    def step(self, chunk: list[int]) -> list[Tensor]:
        """The outputs of the next chunk, sequence by sequence."""
        out = self.attention(**self.arguments(chunk))
        self.done = [done + new for done, new in zip(self.done, chunk, strict=True)]
        return list(out.split(chunk))

    def rotated(self, x: Tensor, sequence: int, part: slice) -> Tensor:
        """RoPE of tokens of a sequence: two products and a sum, each rounded once."""
        x = x[sequence, part]
        if not self.rope:
            return x
        turned = torch.cat((-x[..., DIM // 2 :], x[..., : DIM // 2]), -1)
        cos, sin = (t[part].repeat(1, 2)[:, None] for t in (self.cos, self.sin))
        return x * cos + turned * sin

    def cached(self, sequence: int) -> tuple[Tensor, Tensor]:
        """The dequantised keys and values of a sequence, float64."""
        position = torch.arange(self.done[sequence])
        slots = self.table[sequence, position // 64].long() * 64 + position % 64
        k, v = self.attention.kv.dequantize()
        return k[slots].double(), v[slots].double()


@pytest.mark.parametrize("new_keys", ["int4", "fp8"])
@pytest.mark.parametrize(
    ("options", "rope"),
    [
        ({}, False),
        (smoothing(), True),
        (smoothing() | {"sinks": normal(HEADS), "softcap": 8.0, "softmax_scale": 0.2}, False),
        ({"window_size": (40, 0)}, True),
        ({"causal": False}, True),
    ],
)
def test_chunks_against_float64(new_keys: Any, options: dict[str, Any], rope: bool) -> None:
    """Over the dequantised cache or, where the chunk's own keys are E4M3, over those behind it."""
    run = Run(module(new_keys=new_keys, **options), rope)
    names = ("causal", "window_size", "softcap", "sinks")
    passed = {name: options[name] for name in names if name in options}
    scale = options.get("softmax_scale", DIM**-0.5)
    k_mean, k_smooth = options.get("k_mean", 0), options.get("k_smooth", torch.ones(1, DIM))
    for chunk in CHUNKS:
        before = list(run.done)
        for i, out in enumerate(run.step(chunk)):
            part = slice(before[i], run.done[i])
            keys, values = run.cached(i)
            q = run.q[i, part]
            angles = (run.cos[part], run.sin[part]) if rope else ()
            q8, q_scale = wlib.quantize_q_fp8(q, options.get("k_smooth"), *angles)
            q = q8.double() * q_scale[..., None]
            if "k_smooth" in options:
                q = q * k_smooth.double().repeat_interleave(HEADS // KV_HEADS, 0)
            if new_keys == "fp8":
                k_new = (run.rotated(run.k, i, part) - k_mean) * k_smooth
                for tensor, new in ((keys, k_new), (values, run.v[i, part])):
                    codes, new_scale = wlib.fp8_quantize(new)
                    new = codes.double() * new_scale.double()[..., None]
                    tensor[part] = new if tensor is values else new / k_smooth + k_mean
            exact = reference.attention(q, keys, values, softmax_scale=scale, **passed)
            extra = extra_score(run.attention.kv, q, scale)
            bound = float32_bounds(exact, DIM, len(keys), extra).out
            error = (out.double() - exact.out).abs()
            assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("options", [{}, smoothing()])
def test_the_cache_holds_the_rotated_keys_within_half_a_step(options: dict[str, Any]) -> None:
    run = Run(module(**options), rope=True)
    for chunk in CHUNKS:
        run.step(chunk)
    k_mean, k_smooth = options.get("k_mean", 0), options.get("k_smooth", torch.ones(1, DIM))
    for i in range(3):
        everything = slice(0, run.done[i])
        key, value = run.rotated(run.k, i, everything).double(), run.v[i, everything].double()
        got = run.cached(i)
        inner = (key - k_mean) * k_smooth
        for x, error in ((inner, (got[0] - key) * k_smooth), (value, got[1] - value)):
            half_a_step = x.abs().amax(-1, keepdim=True) / 14
            assert (error.abs() <= half_a_step * (1 + 2.0**-18) + 2.0**-18).all()


@pytest.mark.parametrize("options", [{}, smoothing() | {"window_size": (40, 0)}])
def test_int4_chunks_give_the_bits_of_one_call(options: dict[str, Any]) -> None:
    """A row sees the same codes in the same blocks, and its sums do not know the chunks."""
    pieces, whole = Run(module(**options)), Run(module(**options))
    parts = [pieces.step(chunk) for chunk in CHUNKS]
    total = [sum(lengths) for lengths in zip(*CHUNKS, strict=True)]
    for i, out in enumerate(whole.step(total)):
        assert torch.equal(torch.cat([part[i] for part in parts]), out)
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        assert torch.equal(getattr(pieces.attention, name), getattr(whole.attention, name))


def test_e4m3_keys_of_the_chunk_are_closer_to_the_originals() -> None:
    """INT4 leaves 1/14 of the largest number, E4M3 1/32 of each: near 3 times less here."""
    errors = {}
    for new_keys in ("int4", "fp8"):
        run = Run(module(new_keys=new_keys))
        out = run.step([128, 100, 60])
        exact = [
            reference.attention(
                run.q[i, :n].double(), run.k[i, :n].double(), run.v[i, :n].double(),
                softmax_scale=DIM**-0.5,
            ).out
            for i, n in enumerate((128, 100, 60))
        ]  # fmt: skip
        errors[new_keys] = float((torch.cat(out) - torch.cat(exact)).norm())
    assert 2 * errors["fp8"] < errors["int4"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    run = Run(module(**smoothing()), rope=True)
    run.q, run.k, run.v = (t.to(dtype) for t in (run.q, run.k, run.v))
    out = run.attention(**run.arguments(CHUNKS[0]))
    assert out.dtype == dtype
    assert out.shape == (75, HEADS, DIM)


def test_autocast_gives_its_dtype() -> None:
    run = Run(module(**smoothing()), rope=True)
    given = run.arguments(CHUNKS[0])
    out = run.attention(**given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run.attention(**given), out.bfloat16())


def filled() -> tuple[Int4PrefillAttention, dict[str, Any]]:
    """A module with tokens in its cache, and a call that attends to them."""
    run = Run(module(sinks=normal(HEADS), **smoothing()))
    run.step(CHUNKS[0])
    return run.attention, run.arguments(CHUNKS[1])


def saved(attention: Int4PrefillAttention) -> Int4PrefillAttention:
    file = io.BytesIO()
    torch.save(attention, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, Int4PrefillAttention)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_copies_have_a_cache_of_their_own(copied: Callable[..., Int4PrefillAttention]) -> None:
    attention, given = filled()
    other = copied(attention)
    before = attention.k_cache.clone()
    out = other(**given)
    assert torch.equal(attention.k_cache, before)
    assert not torch.equal(other.k_cache, before)
    assert torch.equal(attention(**given), out)


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()]
)
def test_casts_leave_the_buffers_alone(cast: Callable[[nn.Module], nn.Module]) -> None:
    attention, given = filled()
    expected = copy.deepcopy(attention)(**given)
    cast(attention)
    assert all(getattr(attention, name).dtype == torch.float32 for name in FLOATS)
    assert torch.equal(attention(**given), expected)


def test_state_dict_through_safetensors(tmp_path: Path) -> None:
    attention, _ = filled()
    save_file(attention.state_dict(), tmp_path / "attention.safetensors")
    state = load_file(tmp_path / "attention.safetensors")
    assert set(state) == {"k_mean", "k_smooth", "sinks"}
    zeros = {"k_mean": torch.zeros(KV_HEADS, DIM), "k_smooth": torch.ones(KV_HEADS, DIM)}
    fresh = module(sinks=torch.zeros(HEADS), **zeros)
    fresh.load_state_dict(state)
    for chunk in CHUNKS:
        runs = [Run(fresh), Run(module(sinks=normal(HEADS), **smoothing()))]
        for got, expected in zip(*(run.step(chunk) for run in runs), strict=True):
            assert torch.equal(got, expected)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module().load_state_dict(state)


def test_factors_are_copied() -> None:
    factors = smoothing()
    module(**factors).load_state_dict({name: torch.zeros(KV_HEADS, DIM) for name in factors})
    assert all(factor.any() for factor in factors.values())


def test_from_meta() -> None:
    attention = module(device="meta", **smoothing())
    assert {buffer.device.type for buffer in attention.buffers()} == {"meta"}
    attention.to_empty(device="cpu").load_state_dict(smoothing())
    for scale in (attention.k_scale, attention.v_scale):
        scale.fill_(torch.nan)  # what to_empty leaves
    got, expected = Run(attention).step([9, 0, 70]), Run(module(**smoothing())).step([9, 0, 70])
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("new_keys", ["int4", "fp8"])
def test_compiles_as_one_graph(new_keys: Any) -> None:
    eager = Run(module(new_keys=new_keys, **smoothing()), rope=True)
    compiled = Run(copy.deepcopy(eager.attention), rope=True)
    compiled.attention.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    for chunk in CHUNKS:
        for got, expected in zip(compiled.step(chunk), eager.step(chunk), strict=True):
            assert torch.equal(got, expected)
    assert torch.equal(compiled.attention.k_cache, eager.attention.k_cache)


@pytest.mark.parametrize(
    "changed",
    [
        {"seqlens_cached": torch.tensor([0, 0, 252], dtype=torch.int32)},
        {"page_table": torch.full((3, 4), 12, dtype=torch.int32)},
        {"page_table": pages().index_fill(0, torch.tensor([2]), -1)},
        {"max_seqlen_q": 69},
        {"cu_seqlens_q": torch.tensor([0, 70, 69, 75], dtype=torch.int32)},
        {"sin": torch.zeros(75, DIM)},
        {"v": torch.zeros(75, KV_HEADS + 1, DIM)},
        {"num_splits": -1},
    ],
)
def test_a_refused_call_writes_nothing(changed: dict[str, Any]) -> None:
    run = Run(module(), rope=True)
    with pytest.raises(ValueError, match=r"^wlib"):
        run.attention(**run.arguments(CHUNKS[0]) | changed)
    assert not run.attention.k_scale.any()


def test_repr() -> None:
    assert "num_heads=4, num_kv_heads=2, head_dim=64, num_blocks=12" in repr(module())
