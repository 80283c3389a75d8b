"""The ops as torch sees them: schemas, fakes, opcheck, compile, export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from op_calls import overload
from op_samples import SCHEMAS, samples
from op_samples.int4fp8 import packed


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(overload(name)._schema) == SCHEMAS[name]


def test_every_op_is_listed() -> None:
    listed = {name.split(".")[0] for name in SCHEMAS}
    registered = {
        schema.name.removeprefix("wlib::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("wlib::")
    }
    assert registered == listed


def test_every_op_has_a_sample() -> None:
    assert {name for name, _, _ in samples()} == set(SCHEMAS)


@pytest.mark.parametrize(("name", "arguments", "options"), samples())
def test_opcheck(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    # torch's check for undeclared writes cannot compare float8 tensors; the next test does it.
    tests = ("test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    results = torch.library.opcheck(overload(name), arguments, options, test_utils=tests)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "arguments", "options"), samples())
def test_an_op_writes_and_returns_what_its_schema_says(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    written, read = [], []
    for i, argument in enumerate(overload(name)._schema.arguments):
        value = arguments[i] if i < len(arguments) else options.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        (written if writes else read).append(value)
    leaves = torch.utils._pytree.tree_leaves(read)
    tensors = [value.detach() for value in leaves if isinstance(value, Tensor)]
    before = [(t.flatten().view(torch.uint8).clone(), t._version) for t in tensors]
    result = overload(name)(*arguments, **options)
    for tensor, (bytes_, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor.flatten().view(torch.uint8), bytes_)
        assert tensor._version == version
    given = [t for t in torch.utils._pytree.tree_leaves([read, written]) if isinstance(t, Tensor)]
    storages = {t.untyped_storage().data_ptr() for t in given if t.numel()}
    for output in result if isinstance(result, tuple | list) else (result,):
        assert output is None or output.untyped_storage().data_ptr() not in storages


@pytest.mark.parametrize(("name", "arguments", "options"), samples())
def test_fake_gives_the_metadata_of_the_real_call(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    def metadata(result: Any) -> list[tuple[Any, ...]]:
        tensors = result if isinstance(result, tuple | list) else (result,)
        return [] if result is None else [(t.shape, t.dtype, t.stride(), t.device) for t in tensors]

    real = overload(name)(*arguments, **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes, fake_options = torch.utils._pytree.tree_map_only(
            Tensor, mode.from_tensor, (arguments, options)
        )
        fake = overload(name)(*fakes, **fake_options)
    assert metadata(fake) == metadata(real)


def quantize_and_multiply(p: wlib.PackedInt4Weight) -> Callable[[Tensor], Tensor]:
    """The functional API end to end, with an `out` that is a temporary."""

    def run(x: Tensor) -> Tensor:
        xq, xs = wlib.fp8_quantize(x)
        y = torch.empty(*x.shape[:-1], p.n)
        wlib.int4fp8_gemm(xq, p, xs, out=y)
        return y + wlib.int4fp8_gemm(xq, p, xs, out_dtype=torch.float32)

    return run


def test_compile_of_the_functions() -> None:
    run = quantize_and_multiply(packed(24, 128, 128))
    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    compiled(torch.randn(3, 128))
    with torch.compiler.set_stance("fail_on_recompile"):
        for m in (5, 50):
            x = torch.randn(m, 128)
            assert torch.equal(compiled(x), run(x))


def test_compile_of_the_fused_quantisers() -> None:
    weight = torch.rand(128)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        xq, xs, sums, h = wlib.rms_norm_fp8_quantize(x, weight, residual=x, sums_group=64)
        return xq.float() * xs[:, None], sums, *wlib.silu_mul_fp8_quantize(h)

    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for m in (3, 5, 50):
        x = torch.randn(m, 128)
        for got, expected in zip(compiled(x), run(x), strict=True):
            assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


def test_export_of_the_functions() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x)

    run = quantize_and_multiply(packed(24, 128, 128))
    shapes = ({0: torch.export.Dim("m")},)
    exported = torch.export.export(Module(), (torch.randn(3, 128),), dynamic_shapes=shapes)
    x = torch.randn(20, 128)
    assert torch.equal(exported.module()(x), run(x))


class AppendAndAttend(torch.nn.Module):
    """Writes a chunk into a cache of two blocks and attends to it: mutation, then a read of it."""

    def __init__(self) -> None:
        super().__init__()
        kv = wlib.Int4KVCache.allocate(2, 2, 64)
        kv.k_smooth = torch.rand(2, 64) + 0.5
        self.kv = kv
        for name in ("k", "v", "k_scale", "v_scale"):
            self.register_buffer(name, getattr(kv, name))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
        kv = wlib.Int4KVCache(self.k, self.v, self.k_scale, self.v_scale, None, self.kv.k_smooth)
        kv.append(k, v, slots)
        q8, scale = wlib.quantize_q_fp8(q, kv.k_smooth)
        tokens = torch.full((1,), q.shape[0], dtype=torch.int32)
        out, lse = wlib.attention_prefill(
            q8,
            kv,
            q_scale=scale,
            cu_seqlens_q=torch.nn.functional.pad(tokens, (1, 0)),
            max_seqlen_q=q.shape[0],
            seqused_k=tokens,
            page_table=torch.tensor([[0, 1]], dtype=torch.int32),
            out_dtype=torch.float32,
        )
        return out + lse.T[..., None]


def chunk(tokens: int) -> tuple[Tensor, ...]:
    k, v = torch.randn(2, tokens, 2, 64)
    return torch.randn(tokens, 4, 64), k, v, torch.arange(tokens)


def test_compile_of_attention_over_a_cache_that_it_writes() -> None:
    run = AppendAndAttend()
    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    compiled(*chunk(3))
    with torch.compiler.set_stance("fail_on_recompile"):
        for tokens in (5, 100):
            given = chunk(tokens)
            run.k.zero_()
            got = compiled(*given)
            written = run.k.clone()
            run.k.zero_()
            assert torch.equal(run(*given), got)
            assert torch.equal(run.k, written)
            assert written.any()


def test_export_of_attention_over_a_cache_that_it_writes() -> None:
    run, tokens = AppendAndAttend(), torch.export.Dim("tokens", max=128)
    shapes = ({0: tokens},) * 4
    exported = torch.export.export(run, chunk(3), dynamic_shapes=shapes).run_decompositions()
    module = exported.module()
    given = chunk(70)
    assert torch.equal(module(*given), run(*given))
    assert torch.equal(module.get_buffer("k"), run.k)
    assert run.k.any()


@pytest.mark.parametrize("m", [3, 64])
def test_autocast_changes_nothing(m: int) -> None:
    run = quantize_and_multiply(packed(24, 128, 128))
    x = torch.randn(m, 128)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(x)
    assert torch.equal(inside, run(x))
