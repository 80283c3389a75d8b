"""The ops as torch sees them: schemas, fakes, opcheck, compile, export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib

FP8 = torch.float8_e4m3fn
OPS = torch.ops.wlib

GEMM_OPTIONS = (
    "int n, int group_size, Tensor? bias=None, Tensor? residual=None, "
    'str activation="none", Tensor? out_scale=None, Tensor? x_sums=None'
)
SCHEMAS = {
    "fp8_quantize.default": "wlib::fp8_quantize(Tensor x, *, int? sums_group=None) -> Tensor[]",
    "rms_norm_fp8_quantize.default": "wlib::rms_norm_fp8_quantize(Tensor x, Tensor weight, *, "
    "float eps=9.9999999999999995e-07, Tensor? residual=None, int? sums_group=None) -> Tensor[]",
    "silu_mul_fp8_quantize.default": "wlib::silu_mul_fp8_quantize(Tensor gate_up, *, "
    "bool interleaved=False, int? sums_group=None) -> Tensor[]",
    "fp8_group_sums.default": "wlib::fp8_group_sums(Tensor xq, int group_size) -> Tensor",
    "append_kv_int4.default": "wlib::append_kv_int4(Tensor k, Tensor v, Tensor slot_mapping, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) k_scale, Tensor(d!) v_scale, *, "
    "Tensor? k_mean=None, Tensor? k_smooth=None) -> ()",
    "attention_prefill.default": "wlib::attention_prefill(Tensor q, Tensor q_scale, "
    "Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, Tensor page_table, "
    "Tensor seqused_k, Tensor cu_seqlens_q, *, int max_seqlen_q, Tensor? k_new=None, "
    "Tensor? v_new=None, Tensor? k_new_scale=None, Tensor? v_new_scale=None, "
    "Tensor? key_mean=None, Tensor? sinks=None, float softmax_scale, bool causal=True, "
    "int window_left=-1, int window_right=-1, float softcap=0., int num_splits=0, "
    "ScalarType? out_dtype=None) -> (Tensor, Tensor)",
    "quantize_q_fp8.default": "wlib::quantize_q_fp8(Tensor q, *, Tensor? k_smooth=None, "
    "Tensor? cos=None, Tensor? sin=None) -> (Tensor, Tensor)",
    "int4fp8_gemm.default": "wlib::int4fp8_gemm(Tensor x, Tensor weight, Tensor x_scale, *, "
    f"{GEMM_OPTIONS}, ScalarType? out_dtype=None, int layout_version=1) -> Tensor",
    "fp4_quantize.default": 'wlib::fp4_quantize(Tensor x, *, str format="mxfp4", '
    'str axis="rows", str scale_rule="even", int hadamard=0, Tensor? signs=None, '
    'Tensor? global_scale=None, bool packed=True, str carrier="none", int window=0, '
    "bool mask=False, bool swizzle=False) -> Tensor[]",
    "fp4_requantize_t.default": "wlib::fp4_requantize_t(Tensor codes, Tensor scales, "
    'Tensor? old_global_scale=None, *, str format="mxfp4", str scale_rule="even", '
    "int hadamard=0, Tensor? signs=None, Tensor? global_scale=None, bool packed=True, "
    'str carrier="none", int window=0, bool mask=False, bool swizzle=False) -> Tensor[]',
    "fp4_matmul.default": "wlib::fp4_matmul(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, "
    'Tensor? a_global=None, Tensor? b_global=None, *, float alpha=1., str mode="fold8", '
    "ScalarType? out_dtype=None) -> Tensor",
    "hadamard.default": "wlib::hadamard(Tensor x, int size, Tensor? signs=None, *, "
    "bool inverse=False) -> Tensor",
    "int4fp8_gemm.out": "wlib::int4fp8_gemm.out(Tensor x, Tensor weight, Tensor x_scale, *, "
    f"{GEMM_OPTIONS}, int layout_version=1, Tensor(a!) out) -> ()",
    "atoms_reconstruct.default": "wlib::atoms_reconstruct(Tensor atoms, Tensor coef, "
    "Tensor? base=None, Tensor? residual_a=None, Tensor? residual_b=None, *, float scale=1., "
    "ScalarType? out_dtype=None) -> Tensor",
    "atoms_reconstruct_backward.default": "wlib::atoms_reconstruct_backward(Tensor grad, "
    "Tensor atoms, Tensor coef, *, float scale=1.) -> (Tensor, Tensor)",
    "atoms_combine.default": "wlib::atoms_combine(Tensor[] tensors, Tensor coef) -> Tensor[]",
}


SCHEMAS |= {
    "rebuild.default": "wlib::rebuild(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, ScalarType? out_dtype=None, int? seed=None) -> Tensor[]",
    "rebuild.out": "wlib::rebuild.out(Tensor[] w0, Tensor[] operands, int[] forms, "
    "float[] scales, *, int? seed=None, Tensor(a!)[] out) -> ()",
    "prng_expand.default": "wlib::prng_expand(Tensor coef, int[] shape, int seed, str dist, "
    "int tensor_id, ScalarType? out_dtype=None) -> Tensor",
    "prng_project.default": "wlib::prng_project(Tensor values, int count, int seed, str dist, "
    "int tensor_id) -> Tensor",
}


def overload(name: str) -> torch._ops.OpOverload:
    packet, overload_name = name.split(".")
    return getattr(getattr(OPS, packet), overload_name)


def packed(n: int, k: int, group_size: int, zero_point: bool = False) -> wlib.PackedInt4Weight:
    """A random packed weight [n, k]."""
    groups = k // group_size
    return wlib.Int4Weight(
        codes=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        group_scale=(torch.randn(n, groups) / 50).bfloat16(),
        zero_point=torch.randn(n, groups) if zero_point else None,
    ).pack()


def gemm_arguments(
    lead: tuple[int, ...], k: int, p: wlib.PackedInt4Weight, **options: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    xq, xs = OPS.fp8_quantize(torch.randn(*lead, k))
    return (xq, p.data, xs), {"n": p.n, "group_size": p.group_size} | options


def fp4_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of the fp4 ops that cover every argument."""
    signs = torch.ones(32, dtype=torch.int8)
    nv = {"format": "nvfp4", "scale_rule": "four_over_six"}
    both = {"carrier": "e5m2", "mask": True, "swizzle": True, "axis": "both"}
    a = OPS.fp4_quantize(torch.randn(5, 64), carrier="e4m3")
    b = OPS.fp4_quantize(torch.randn(32, 64), scale_rule="amax", format="nvfp4")
    return [
        ("fp4_quantize.default", (torch.randn(3, 64),), {}),
        ("fp4_quantize.default", (torch.randn(32, 64).half(),), both),
        ("fp4_quantize.default", (torch.randn(0, 64), ), {"hadamard": 32, "signs": signs}),
        ("fp4_quantize.default", (torch.randn(3, 80)[:, :64].bfloat16(),), nv),
        ("fp4_quantize.default", (torch.randn(64, 3),), {"axis": "columns", "packed": False,
                                                         "carrier": "e4m3", "window": 9}),
        ("fp4_quantize.default", (torch.randn(3, 64),), {**nv, "global_scale": torch.tensor(0.1)}),
        ("fp4_requantize_t.default", (b[0], b[1], b[2]), {"hadamard": 16}),
        ("fp4_requantize_t.default", tuple(OPS.fp4_quantize(torch.randn(64, 32))[:2]), nv),
        ("fp4_matmul.default", (a[3], a[4], a[0], a[1]), {"out_dtype": torch.float32}),
        ("fp4_matmul.default", (b[0], b[1], a[0], a[1], b[2]), {"mode": "bf16", "alpha": 0.5}),
        ("fp4_matmul.default", (a[0], a[1], a[0], a[1]), {"mode": "exact32"}),
        ("hadamard.default", (torch.randn(2, 3, 64).half(), 32, signs), {"inverse": True}),
        ("hadamard.default", (torch.randn(5, 200)[:, 16:80], 64), {}),
    ]  # fmt: skip


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls that cover every argument, empty batches and rows that lie apart."""
    torch.manual_seed(0)
    quantize = [
        torch.randn(3, 64),
        torch.randn(2, 3, 64, dtype=torch.bfloat16),
        torch.randn(64, dtype=torch.float16),
        torch.randn(0, 64),
        torch.randn(5, 200)[:, 16:80],
    ]
    weight = torch.rand(64)
    norm: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((quantize[0], weight), {}),
        ((quantize[1], weight), {"residual": quantize[1] + 1, "eps": 0.1}),
        ((quantize[4], weight), {"residual": quantize[4] + 1, "sums_group": 64}),
    ]
    silu: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((quantize[0],), {}),
        ((quantize[3],), {"interleaved": True, "sums_group": 32}),
    ]
    sums = [(x.to(FP8), size) for x, size in zip(quantize, (32, 64, 64, 64, 32), strict=True)]
    gemm = [
        gemm_arguments((3,), 256, packed(40, 256, 128)),
        gemm_arguments((2, 9), 96, packed(70, 96, 32, True), bias=torch.randn(70)),
        gemm_arguments((), 128, packed(1, 128, 64), out_dtype=torch.float32),
        gemm_arguments((0,), 128, packed(9, 128, 128), layout_version=1),
        gemm_arguments((40,), 160, packed(9, 160, 160), bias=torch.randn(9).half(),
                       out_dtype=torch.float16),
    ]  # fmt: skip
    gemm += [
        gemm_arguments((5,), 256, packed(40, 256, 128), residual=torch.randn(5, 20),
                       activation="silu_mul"),
        gemm_arguments((2, 3), 128, packed(40, 128, 64, True), out_dtype=FP8,
                       out_scale=torch.tensor(0.5), x_sums=torch.ones(2, 8),
                       residual=torch.randn(2, 3, 40).bfloat16()),
        gemm_arguments((0, 3), 128, packed(6, 128, 128), activation="silu_mul",
                       residual=torch.randn(0, 3, 3)),
    ]  # fmt: skip
    (xq, data, xs), options = gemm[0]
    gemm.append(((torch.cat((xq, xq), dim=1)[:, :256], data, xs), options))
    out = [
        (arguments, {**options, "out": overload("int4fp8_gemm.default")(*arguments, **options)})
        for arguments, options in gemm[:8]
    ]
    for _, options in out:
        options.pop("out_dtype", None)
    atoms, coef, base = torch.randn(2, 4, 6), torch.randn(3, 2, 4), torch.randn(3, 4, 6)
    residual = torch.randn(3, 4, 1), torch.randn(3, 1, 6)
    return (
        [("fp8_quantize.default", (x,), {}) for x in quantize]
        + [("fp8_quantize.default", (quantize[1],), {"sums_group": 32})]
        + [("rms_norm_fp8_quantize.default", *call) for call in norm]
        + [("silu_mul_fp8_quantize.default", *call) for call in silu]
        + [("fp8_group_sums.default", call, {}) for call in sums]
        + [("int4fp8_gemm.default", *call) for call in gemm]
        + [("int4fp8_gemm.out", *call) for call in out]
        + rebuild_samples()
        + [("atoms_reconstruct.default", (atoms, coef, base, *residual), {"scale": 0.5})]
        + [("atoms_reconstruct_backward.default", (base.half(), atoms, coef), {})]
        + fp4_samples()
        + prng_samples()
    )


def rebuild_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every form in one call, with and without bases, gradients and mixed dtypes."""

    def operands(**options: Any) -> list[Tensor]:
        shapes = [(6, 2), (2, 8), (6, 3), (3, 8), (6, 1), (1, 8), (2, 4), (3, 2), (3, 2, 2)]
        return [torch.randn(shape, **options) for shape in shapes]

    bases = [
        torch.randn(6, 2, 4),
        torch.randn(6, 8).bfloat16(),
        torch.randn(6, 8),
        torch.randn(6, 8),
    ]
    forms, scales = [0, 1, 2, 3], [1.0, 0.5, -2.0, 0.25]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("rebuild.default", (bases, operands(requires_grad=True), forms, scales), {}),
        ("rebuild.default", ([], operands()[:8], forms[:3], scales[:3]), {}),
        ("rebuild.default", (bases, operands(dtype=torch.float16), forms, scales),
         {"out_dtype": torch.bfloat16, "seed": 3}),
        ("rebuild.default", ([], [torch.randn(0, 2), torch.randn(2, 5)], [0], [1.0]), {}),
        ("rebuild.default", ([], [torch.randn(4, 0), torch.randn(0, 5)], [0], [1.0]), {}),
        ("rebuild.out", (bases, operands(), forms, scales),
         {"out": [torch.empty(base.shape, dtype=torch.float16) for base in bases]}),
    ]  # fmt: skip
    return calls


def prng_samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    coef = torch.randn(5, requires_grad=True)
    return [
        ("prng_expand.default", (coef, [3, 7], 1, "uniform", 0), {}),
        ("prng_expand.default", (coef.detach(), [40], -1, "sign", 3, torch.bfloat16), {}),
        ("prng_expand.default", (coef.detach()[:0], [2, 0], 2, "normal", 0), {}),
        ("prng_project.default", (torch.randn(3, 7), 5, 1, "normal", 0), {}),
        ("prng_project.default", (torch.randn(9).half(), 2, 1, "sign", 0), {}),
    ]


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
    values = [*arguments, *(v for k, v in options.items() if k != "out")]
    leaves = torch.utils._pytree.tree_leaves(values)
    tensors = [value.detach() for value in leaves if isinstance(value, Tensor)]
    before = [(t.flatten().view(torch.uint8).clone(), t._version) for t in tensors]
    result = overload(name)(*arguments, **options)
    for tensor, (bytes_, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor.flatten().view(torch.uint8), bytes_)
        assert tensor._version == version
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
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


@pytest.mark.parametrize("m", [3, 64])
def test_autocast_changes_nothing(m: int) -> None:
    run = quantize_and_multiply(packed(24, 128, 128))
    x = torch.randn(m, 128)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(x)
    assert torch.equal(inside, run(x))
