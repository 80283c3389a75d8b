"""Rebuilt weights against float64 and against the formulas of the public implementations."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib import rebuild
from wlib.reference import rebuild as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (6, 10, 3), (64, 40, 8), (33, 129, 17))  # out, in, rank


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small enough that every sum of the tests is exact in float32."""
    return torch.randint(-3, 4, shape).to(dtype)


def form_operands(form: int, n: int, k: int, r: int, make: Callable[..., Tensor]) -> list[Tensor]:
    """Operands of a layer [n, k]; for kron and block_affine, n and k are multiples of r."""
    shapes = {
        0: [(n, r), (r, k)],
        1: [(n, r), (r, k), (n, r + 1), (r + 1, k)],
        2: [(n // r, 3), (r, k // 3)],
        3: [(n // r, r, r)],
    }[form]
    return [make(*shape) for shape in shapes]


def expected(form: int, w0: Tensor | None, operands: list[Tensor], scale: float) -> Any:
    by_form: list[Callable[..., Any]] = [
        reference.low_rank,
        reference.hadamard,
        reference.kron,
        reference.block_affine,
    ]
    return by_form[form](w0, *operands, scale)


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize(("n", "k", "r"), [(2, 6, 2), (12, 18, 3), (64, 96, 8)])
def test_exact(form: int, n: int, k: int, r: int) -> None:
    """Every base, operand and output dtype: integers and scale 1/2 give the float64 result."""
    for base_dtype, dtype, out_dtype in itertools.product(DTYPES, DTYPES, DTYPES):
        w0 = integers(n, k, dtype=base_dtype)
        operands = form_operands(form, n, k, r, functools.partial(integers, dtype=dtype))
        exact = expected(form, w0, operands, 0.5).value
        (out,) = torch.ops.wlib.rebuild([w0], operands, [form], [0.5], out_dtype=out_dtype)
        assert out.dtype == out_dtype
        assert torch.equal(out, exact.to(out_dtype))
        if form != 3:
            (delta,) = torch.ops.wlib.rebuild([], operands, [form], [0.5], out_dtype=out_dtype)
            assert torch.equal(delta, (exact - w0.double()).to(out_dtype))


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "r"), [(12, 18, 3), (130, 130, 65), (64, 960, 8)])
def test_random_within_the_bound(form: int, out_dtype: torch.dtype, n: int, k: int, r: int) -> None:
    k = k // 3 * 3 if form == 2 else k
    w0 = torch.randn(n, k)
    operands = form_operands(form, n, k, r, torch.randn)
    exact = expected(form, w0, operands, 0.3)
    (out,) = torch.ops.wlib.rebuild([w0], operands, [form], [0.3], out_dtype=out_dtype)
    terms = 2 * r + 1 if form == 1 else r
    assert ((out.double() - exact.value).abs() <= exact.bound(terms, out_dtype)).all()


def test_operands_may_be_views() -> None:
    a, b = integers(5, 12).T[::2], integers(14, 10)[::2, ::2].T
    exact = reference.low_rank(None, a, b, 1.0).value
    assert torch.equal(torch.ops.wlib.rebuild([], [a, b], [0], [1.0])[0], exact.float())


def test_the_reference_takes_views() -> None:
    a, b = integers(2, 3).T, integers(4, 5).T
    assert torch.equal(reference.kron(None, a, b, 2.0).value, 2 * torch.kron(a.clone(), b.clone()))


def conv(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_lora_is_the_delta_weight_of_peft() -> None:
    """Linear: (B @ A) * scaling. Conv2d: the 1x1 product, B and A [.., 1, 1] or A with a kernel."""
    w0, a, b = conv(8, 6), conv(3, 6), conv(8, 3)
    assert torch.allclose(rebuild.lora(w0, a, b, 16 / 3), w0 + (b @ a) * (16 / 3))
    w0, a, b = conv(8, 6, 3, 3), conv(4, 6, 3, 3), conv(8, 4, 1, 1)
    delta = torch.nn.functional.conv2d(a.transpose(0, 1), b).transpose(0, 1)
    assert torch.allclose(rebuild.lora(w0, a, b, 2.0), w0 + 2.0 * delta)


def test_loha_is_the_weight_of_peft() -> None:
    """make_weight, ((w1_a @ w1_b) * (w2_a @ w2_b)) * scale, like the base; make_weight_cp."""
    w0 = conv(8, 6, 3, 3)
    w1_a, w1_b, w2_a, w2_b = conv(8, 4), conv(4, 54), conv(8, 4), conv(4, 54)
    delta = ((w1_a @ w1_b) * (w2_a @ w2_b) * 0.5).reshape(8, 6, 3, 3)
    assert torch.allclose(rebuild.loha(w0, w1_a, w1_b, w2_a, w2_b, scale=0.5), w0 + delta)
    t1, t2, (w1_a, w1_b), (w2_a, w2_b) = (
        conv(4, 4, 3, 3), conv(4, 4, 3, 3), (conv(4, 8), conv(4, 6)), (conv(4, 8), conv(4, 6)),
    )  # fmt: skip
    delta = torch.einsum("ijkl,jr,ip->prkl", t1, w1_b, w1_a)
    delta = delta * torch.einsum("ijkl,jr,ip->prkl", t2, w2_b, w2_a) * 0.5
    assert torch.allclose(rebuild.loha(w0, w1_a, w1_b, w2_a, w2_b, t1, t2, 0.5), w0 + delta)
    assert torch.allclose(rebuild.loha(None, w1_a, w1_b, w2_a, w2_b, t1, t2, 0.5), delta)


def test_lokr_is_the_weight_of_lycoris() -> None:
    """torch.kron(w1 with trailing ones, w2) * scale, every way to give w1 and w2."""
    w1, w1_a, w1_b = conv(2, 3), conv(2, 2), conv(2, 3)
    w2, w2_a, w2_b, t2 = conv(4, 2, 3, 3), conv(4, 5), conv(5, 2, 3, 3), conv(5, 5, 3, 3)
    tall_a, tall_b = conv(5, 4), conv(5, 2)
    firsts = [({"w1": w1}, w1), ({"w1_a": w1_a, "w1_b": w1_b}, w1_a @ w1_b)]
    seconds = [
        ({"w2": w2}, w2),
        ({"w2_a": w2_a, "w2_b": w2_b}, (w2_a @ w2_b.view(5, -1)).view(4, 2, 3, 3)),
        ({"t2": t2, "w2_a": tall_a, "w2_b": tall_b},
         torch.einsum("ijkl,ip,jr->prkl", t2, tall_a, tall_b).contiguous()),
    ]  # fmt: skip
    w0 = conv(8, 6, 3, 3)
    for (first, left), (second, right) in itertools.product(firsts, seconds):
        delta = torch.kron(left[..., None, None], right) * 0.25
        assert torch.allclose(rebuild.lokr(w0, **first, **second, scale=0.25), w0 + delta)
        assert torch.allclose(rebuild.lokr(None, **first, **second, scale=0.25), delta)


def test_cp_is_the_tensor_of_tensorly() -> None:
    factors, weights, w0 = (
        [conv(8, 3), conv(6, 3), conv(3, 3), conv(2, 3)],
        conv(3),
        conv(8, 6, 3, 2),
    )
    delta = torch.einsum("r,ar,br,cr,dr->abcd", weights, *factors)
    assert torch.allclose(rebuild.cp(w0, factors, weights, 0.5), w0 + 0.5 * delta)
    assert torch.allclose(rebuild.cp(None, factors[:2]), factors[0] @ factors[1].T)


def test_hydra_is_the_layer_with_two_branches() -> None:
    w0, a1, b1, a2, b2 = conv(8, 6), conv(2, 6), conv(8, 2), conv(2, 8), conv(8, 2)
    x = conv(5, 6)
    h = x @ w0.T
    y = h + 0.5 * (x @ a1.T @ b1.T + h @ a2.T @ b2.T)
    assert torch.allclose(x @ rebuild.hydra(w0, a1, b1, a2, b2, 0.5).T, y)


def test_block_affine_is_the_delta_weight_of_bone() -> None:
    """PEFT, init_weights="bat": orig + (orig as [in/r, out/r, r, r] @ block + block), put back."""
    w0, block = conv(12, 20), conv(3, 4, 4)
    blocks = w0.reshape(3, 4, 5, 4).permute(2, 0, 1, 3)
    delta = (blocks @ block + block).permute(1, 2, 0, 3).reshape(12, 20)
    assert torch.allclose(rebuild.block_affine(w0, block), w0 + delta)


def calls() -> list[functools.partial[Tensor]]:
    """One of each method, float64, every operand with a gradient."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    p = functools.partial
    return [
        p(rebuild.lora, leaf(4, 6), leaf(2, 6), leaf(4, 2), scale=2.0),
        p(rebuild.lora, None, leaf(2, 3, 2, 2), leaf(4, 2, 1, 1)),
        p(
            rebuild.loha,
            leaf(4, 6),
            leaf(4, 2),
            leaf(2, 6),
            leaf(4, 3),
            leaf(3, 6),
            None,
            None,
            0.5,
        ),
        p(rebuild.lokr, leaf(4, 6), leaf(2, 3), None, None, leaf(2, 2), scale=0.5),
        p(rebuild.cp, leaf(4, 3, 2), [leaf(4, 2), leaf(3, 2), leaf(2, 2)], leaf(2)),
        p(rebuild.hydra, leaf(4, 6), leaf(1, 6), leaf(4, 1), leaf(2, 4), leaf(4, 2)),
        p(rebuild.block_affine, leaf(4, 6), leaf(2, 2, 2), scale=0.5),
    ]


@pytest.mark.parametrize("index", range(7))
def test_gradients(index: int) -> None:
    call = calls()[index]
    leaves, spec = torch.utils._pytree.tree_flatten(call.args)
    inputs = [x for x in leaves if isinstance(x, Tensor)]

    def run(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        arguments = [next(given) if isinstance(x, Tensor) else x for x in leaves]
        result: Tensor = call.func(
            *torch.utils._pytree.tree_unflatten(arguments, spec), **call.keywords
        )
        return result

    assert torch.autograd.gradcheck(run, inputs)


def test_gradients_have_the_dtypes_of_their_tensors() -> None:
    w0 = torch.randn(8, 6, dtype=torch.bfloat16, requires_grad=True)
    a = torch.randn(2, 6, requires_grad=True)
    b = torch.randn(8, 2, dtype=torch.float16, requires_grad=True)
    rebuild.lora(w0, a, b).sum().backward()
    assert [t.grad.dtype for t in (w0, a, b)] == [w0.dtype, a.dtype, b.dtype]


def test_merge_many_gives_what_single_calls_give() -> None:
    many = calls()
    with torch.no_grad():
        single = [call() for call in many]
        assert all(map(torch.equal, rebuild.merge_many(many), single))
        outs = [torch.empty_like(result) for result in single]
        assert rebuild.merge_many(many, outs) == outs
        assert all(map(torch.equal, outs, single))
    assert rebuild.merge_many([]) == []


def test_out_may_be_the_base() -> None:
    w0, a, b = torch.randn(8, 6), torch.randn(2, 6), torch.randn(8, 2)
    merged = rebuild.lora(w0, a, b, 0.5)
    assert rebuild.lora(w0, a, b, 0.5, out=w0) is w0
    assert torch.equal(w0, merged)
    delta = torch.empty(8, 6)
    assert rebuild.lora(None, a, b, 0.5, out=delta) is delta
    assert torch.equal(delta, rebuild.lora(None, a, b, 0.5))


def test_compiles_without_graph_breaks() -> None:
    w0, a, b = (torch.randn(*s, requires_grad=True) for s in ((8, 6), (2, 6), (8, 2)))
    compiled = torch.compile(functools.partial(rebuild.lora, scale=0.5), fullgraph=True)
    assert torch.equal(compiled(w0, a, b), rebuild.lora(w0, a, b, 0.5))
    compiled(w0, a, b).square().sum().backward()
    grads = [t.grad.clone() for t in (w0, a, b)]
    for t in (w0, a, b):
        t.grad = None
    rebuild.lora(w0, a, b, 0.5).square().sum().backward()
    assert all(torch.allclose(g, t.grad) for g, t in zip(grads, (w0, a, b), strict=True))


def ulps_of_bfloat16(got: Tensor, exact: Tensor) -> Tensor:
    """Distance in units of the last place of bfloat16 at the exact value."""
    exponent = exact.abs().clamp_min(2.0**-126).log2().floor()
    return (got.double() - exact).abs() / torch.exp2(exponent - 7)


@pytest.mark.parametrize("rank", [8, 64])
def test_merged_drifts_from_unmerged_by_half_an_ulp(rank: int) -> None:
    """W0 + scale * B A in float64, what the unmerged layer multiplies with, against the merge.

    Rounding once costs half a unit; the float32 sums before it cost less than 2^-12 of one here,
    because no result is small beside its terms by more than the elements left out below.
    """
    w0 = (torch.randn(256, 512) * 0.02).bfloat16()
    a, b = torch.randn(rank, 512) / rank, torch.randn(256, rank) * 0.02
    exact = reference.low_rank(w0, b, a, 2.0)
    drift = ulps_of_bfloat16(rebuild.lora(w0, a, b, 2.0), exact.value)
    assert drift[exact.value.abs() > exact.magnitude / 64].max() <= 0.5 + 2**-8
    assert drift.quantile(0.999) <= 0.51
    chained = (w0.float() + 2.0 * (b @ a).bfloat16().float()).bfloat16()  # two roundings
    assert ulps_of_bfloat16(chained, exact.value).max() > 0.6


class TestStochasticRounding:
    def merged(self, seed: int, value: float = 1 + 2**-9, n: int = 100_000) -> Tensor:
        w0 = torch.full((n, 1), value)
        zero = torch.zeros(n, 1), torch.zeros(1, 1)
        return rebuild.lora(w0, zero[1], zero[0], seed=seed, out_dtype=torch.bfloat16).float()

    def test_is_up_as_often_as_the_fraction_says(self) -> None:
        """1 + 2^-9 lies a quarter of the way from 1 to 1 + 2^-7; six standard deviations."""
        got = self.merged(7)
        assert set(got.unique().tolist()) == {1.0, 1 + 2**-7}
        share = (got > 1).double().mean().item()
        assert abs(share - 0.25) < 6 * (0.25 * 0.75 / 100_000) ** 0.5

    def test_is_a_function_of_the_seed(self) -> None:
        assert torch.equal(self.merged(7), self.merged(7))
        assert not torch.equal(self.merged(7), self.merged(8))

    def test_layers_have_numbers_of_their_own(self) -> None:
        w0 = torch.full((1000, 1), 1 + 2**-9)
        operands = [torch.zeros(1000, 1), torch.zeros(1, 1)] * 2
        options = {"out_dtype": torch.bfloat16, "seed": 7}
        first, second = torch.ops.wlib.rebuild([w0, w0], operands, [0, 0], [1.0, 1.0], **options)
        assert not torch.equal(first, second)

    def test_leaves_representable_values_alone(self) -> None:
        values = torch.tensor([0.0, 1.0, -3.5, torch.inf, -torch.inf, torch.nan])[:, None]
        zero = torch.zeros(1, 1), torch.zeros(6, 1)
        got = rebuild.lora(values, *zero, seed=1, out_dtype=torch.bfloat16).float()
        assert torch.equal(got[:5], values[:5])
        assert got[5].isnan()


def test_info_lists_the_op() -> None:
    assert wlib.info().dispatch["rebuild"][0].startswith("cpu")
