"""Random sizes, dtypes and options of the main ops against their float64 references.

WLIB_FUZZ=long draws new problems each time, and a hundred times as many.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import test_prefill
import wlib
from test_fp4 import MX_RULES, assert_quantised, dyadic, random_signs, rotated
from test_int4fp8 import GROUPS, OUT_DTYPES, random_weight
from test_rebuild import expected, form_operands
from wlib.reference import atoms as atoms_reference
from wlib.reference import fp4 as fp4_reference
from wlib.reference import int4fp8 as int4fp8_reference
from wlib.reference import sparse_lowrank as sparse_reference

LONG = os.environ.get("WLIB_FUZZ") == "long"
fuzz = settings(
    max_examples=2000 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(OUT_DTYPES)


@fuzz
@given(
    m=st.integers(0, 70),
    n=st.integers(1, 130).map(lambda half: 2 * half),
    k_and_group=st.sampled_from(GROUPS),
    zero_point=st.booleans(),
    channel_scale=st.booleans(),
    activation=st.sampled_from(["none", "silu_mul"]),
    dtype=dtypes,
    data=st.data(),
)
def test_int4fp8_gemm(
    m: int,
    n: int,
    k_and_group: tuple[int, int],
    zero_point: bool,
    channel_scale: bool,
    activation: Any,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    torch.manual_seed(data.draw(seeds))
    k, columns = k_and_group[0], n // 2 if activation == "silu_mul" else n
    weight = random_weight(n, *k_and_group, zero_point, channel_scale)
    xq, xs = wlib.fp8_quantize(torch.randn(m, k).to(data.draw(dtypes)))
    bias = torch.randn(n).to(data.draw(dtypes)) if data.draw(st.booleans()) else None
    residual = torch.randn(m, columns).to(data.draw(dtypes)) if data.draw(st.booleans()) else None
    follow: dict[str, Any] = {"residual": residual, "activation": activation}
    exact = int4fp8_reference.int4fp8_gemm(xq, weight, xs, bias, **follow)
    y = wlib.int4fp8_gemm(xq, weight.pack(), xs, bias, dtype, **follow)
    assert ((y.double() - exact.y).abs() <= exact.bound(k, dtype)).all()


@fuzz
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 150)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    dim=st.sampled_from([64, 128, 256]),
    new=st.booleans(),
    smooth=st.booleans(),
    causal=st.booleans(),
    left=st.integers(-1, 40),
    softcap=st.sampled_from([0.0, 5.0]),
    seed=seeds,
)
def test_attention_prefill(
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    dim: int,
    new: bool,
    smooth: bool,
    causal: bool,
    left: int,
    softcap: float,
    seed: int,
) -> None:
    queries, cached = map(list, zip(*lengths, strict=True))
    heads = {"heads": kv_heads * group, "kv_heads": kv_heads, "dim": dim}
    s = test_prefill.make(queries, cached, new=new, smooth=smooth, seed=seed, **heads)
    test_prefill.check(s, causal=causal, window_size=(left, -1), softcap=softcap)


def layer_over_atoms(m: int, s: int, n: int, k: int, own: bool, dtype: torch.dtype) -> list[Tensor]:
    """x, atoms, coef, bias, base."""
    coef = torch.randn(m, s) if own else torch.randn(s)
    x, atoms, bias, base = (
        torch.randn(shape).to(dtype) for shape in ((m, k), (s, n, k), (n,), (n, k))
    )
    return [x, atoms, coef, bias, base]


@fuzz
@given(
    m=st.integers(0, 70),
    s=st.integers(1, 9),
    n=st.integers(0, 140),
    k=st.integers(0, 140),
    own=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_atoms_linear(
    m: int, s: int, n: int, k: int, own: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    problem = layer_over_atoms(m, s, n, k, own, dtype)
    true = atoms_reference.linear(*problem)
    error = (wlib.atoms_linear(*problem).double() - true.value).abs()
    assert (error <= true.bound(k + s + 1, dtype)).all()


@fuzz
@given(
    layers=st.integers(1, 9),
    s=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 90)),
    per_row=st.booleans(),
    base=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_atoms_reconstruct(
    layers: int,
    s: int,
    shape: tuple[int, int],
    per_row: bool,
    base: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    atoms = torch.randn(s, *shape).to(dtype)
    coef = torch.randn(layers, s, shape[0]) if per_row else torch.randn(layers, s)
    added = torch.randn(layers, *shape).to(dtype) if base else None
    true = atoms_reference.reconstruct(atoms, coef, added, None, 0.3)
    got = wlib.atoms_reconstruct(atoms, coef, added, scale=0.3)
    assert ((got.double() - true.value).abs() <= true.bound(s + 1, got.dtype)).all()


@fuzz
@given(
    form=st.integers(0, 3),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    r=st.integers(1, 9),
    dtype=dtypes,
    out_dtype=dtypes,
    seed=seeds,
)
def test_rebuild(
    form: int,
    rows: int,
    columns: int,
    r: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    n, k = rows * r, columns * (3 * r if form == 2 else r)
    w0 = torch.randn(n, k).to(dtype)
    operands = form_operands(form, n, k, r, lambda *shape: torch.randn(shape).to(dtype))
    exact = expected(form, w0, operands, 0.3)
    (out,) = torch.ops.wlib.rebuild([w0], operands, [form], [0.3], out_dtype=out_dtype)
    bound = exact.bound(2 * r + 1 if form == 1 else r, out_dtype)
    assert ((out.double() - exact.value).abs() <= bound).all()


@fuzz
@given(
    m=st.integers(0, 40),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    rank=st.integers(1, 9),
    density=st.floats(0, 1),
    seed=seeds,
)
def test_sparse_lowrank_linear(
    m: int, rows: int, columns: int, rank: int, density: float, seed: int
) -> None:
    torch.manual_seed(seed)
    support = wlib.sparse_support(rows, columns, density, seed=seed)
    x, b, a = torch.randn(m, columns), torch.randn(rows, rank), torch.randn(rank, columns)
    values, bias = torch.randn(support.count), torch.randn(rows)
    true = sparse_reference.linear(x, b, a, values, support.indices(), 0.5, bias)
    y = wlib.sparse_lowrank_linear(x, b, a, values, support, 0.5, bias)
    # Sums of float32 products in any order: rank + K, and the chain's two sums of K and rank.
    bound = (2 * columns + 2 * rank + 8) * atoms_reference.F32_EPS * true.magnitude
    assert ((y.double() - true.value).abs() <= bound).all()


@fuzz
@given(
    rows=st.integers(0, 70),
    blocks=st.integers(1, 5),
    rule=st.sampled_from(MX_RULES),
    size=st.sampled_from([0, 16, 32, 64, 128]),
    dtype=dtypes,
    seed=seeds,
)
def test_fp4_quantize(
    rows: int, blocks: int, rule: str, size: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    signs = random_signs(size) if size else None
    x = dyadic(rows, 128 * blocks, dtype=dtype)
    q = wlib.fp4_quantize(x, hadamard=size, signs=signs, scale_rule=rule)
    assert_quantised(q, fp4_reference.quantize_mx(rotated(x, size, signs), rule))


@fuzz
@given(
    m=st.integers(0, 40),
    n=st.integers(0, 40),
    blocks=st.integers(1, 9),
    mode=st.sampled_from(["auto", "exact32", "bf16"]),
    dtype=dtypes,
    seed=seeds,
)
def test_fp4_matmul(m: int, n: int, blocks: int, mode: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    k = 32 * blocks
    a, b = (wlib.fp4_quantize(torch.randn(rows, k)) for rows in (m, n))
    left, right = a.dequantize().double(), b.dequantize().double()
    exact = 0.75 * left @ right.T
    # K additions, the scales and alpha in float32; one rounding to the output's type.
    bound = (k + 8) * 2.0**-24 * (left.abs() @ right.abs().T)
    info = torch.finfo(dtype)
    bound = bound + (exact.abs() + bound) * info.eps / 2 + info.tiny
    y = wlib.fp4_matmul(a, b, 0.75, dtype, mode)  # type: ignore[arg-type]
    assert ((y.double() - exact).abs() <= bound).all()
