"""Tucker forms against float64 and against FLoRA's chain of products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import wlib
from wlib.reference import rebuild as reference
from wlib.tucker import TuckerLayer

# Sizes and ranks of weights of 1 to 5 dimensions; 1x1 kernels and ranks above the size included.
CASES = (
    ((7,), (3,)),
    ((12, 9), (4, 3)),
    ((8, 6, 3), (4, 3, 2)),
    ((16, 8, 3, 3), (6, 4, 2, 2)),
    ((8, 4, 1, 1), (2, 5, 1, 1)),
    ((6, 4, 2, 3, 2), (3, 2, 2, 2, 1)),
)


def operands(
    sizes: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    factors = [torch.randn(size, rank) for size, rank in zip(sizes, ranks, strict=True)]
    return torch.randn(ranks).to(dtype), [factor.to(dtype) for factor in factors]


@pytest.mark.parametrize(("sizes", "ranks"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reconstruct_and_merge(
    sizes: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> None:
    core, factors = operands(sizes, ranks, dtype)
    exact = reference.tucker(core, factors)
    terms = sum(ranks) + len(ranks)
    got = wlib.tucker_reconstruct(core, factors)
    assert got.is_contiguous()
    assert ((got.double() - exact.value).abs() <= exact.bound(terms, got.dtype)).all()

    w0 = torch.randn(sizes).to(dtype)
    merged = wlib.tucker_merge(w0, core, factors, 0.5)
    assert merged.dtype == dtype
    whole = reference.Reference(
        w0.double() + 0.5 * exact.value, w0.double().abs() + 0.5 * exact.magnitude
    )
    assert ((merged.double() - whole.value).abs() <= whole.bound(terms, dtype)).all()
    assert wlib.tucker_merge(w0, core, factors, 0.5, out=w0) is w0
    assert torch.equal(w0, merged)


@pytest.mark.parametrize(("sizes", "ranks"), CASES)
def test_integers_are_exact(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    core = torch.randint(-2, 3, ranks).float()
    factors = [torch.randint(-2, 3, pair).float() for pair in zip(sizes, ranks, strict=True)]
    exact = reference.tucker(core, factors).value
    assert torch.equal(wlib.tucker_reconstruct(core, factors).double(), exact)


@pytest.mark.parametrize("groups", [1, 2])
def test_merge_is_the_delta_of_flora(groups: int) -> None:
    """FLoRA: G x1 A x2 B x3 C x4 D with dimensions [in, out, kh, kw], transposed, times scale.

    The second dimension of a grouped convolution's weight is in / groups.
    """
    n_in, n_out, dtype = 8 // groups, 12, torch.float64
    core = torch.randn(4, 5, 2, 2, dtype=dtype)
    factors = [torch.randn(n, r, dtype=dtype) for n, r in ((n_in, 4), (n_out, 5), (3, 2), (3, 2))]
    delta = core
    for factor in factors:
        delta = torch.tensordot(delta, factor, dims=([0], [1]))
    delta = delta.transpose(0, 1) * 4.0
    w0 = torch.randn(n_out, n_in, 3, 3, dtype=dtype)
    assert torch.allclose(wlib.tucker_merge(w0, core, factors, 4.0, in_first=True), w0 + delta)

    linear = torch.randn(n_out, n_in, dtype=dtype)
    small = core[:, :, 0, 0]
    expected = linear + 4.0 * (factors[0] @ small @ factors[1].T).T
    merged = wlib.tucker_merge(linear, small, factors[:2], 4.0, in_first=True)
    assert torch.allclose(merged, expected)


@pytest.mark.parametrize(("sizes", "ranks"), [((3,), (2,)), ((3, 4, 2), (2, 3, 2))])
def test_gradients(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    core, factors = operands(sizes, ranks, torch.float64)
    w0 = torch.randn(sizes, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (w0, core, *factors)]
    assert torch.autograd.gradcheck(lambda w, c, *f: wlib.tucker_merge(w, c, f, 0.5), inputs)
    assert torch.autograd.gradcheck(lambda c, *f: wlib.tucker_reconstruct(c, f), inputs[1:])


def test_many_layers_give_what_single_calls_give() -> None:
    layers = [
        TuckerLayer(torch.randn(sizes), *operands(sizes, ranks), 0.1 * i)
        for i, (sizes, ranks) in enumerate(CASES)
    ]
    single = [wlib.tucker_merge(*layer) for layer in layers]
    assert all(map(torch.equal, wlib.tucker_merge_many(layers), single))
    outs = [torch.empty_like(merged) for merged in single]
    assert wlib.tucker_merge_many([tuple(layer) for layer in layers], outs) == outs
    assert all(map(torch.equal, outs, single))
    assert wlib.tucker_merge_many([]) == []


def test_many_layers_are_one_call_of_the_op_per_dimension() -> None:
    """What makes hundreds of layers a handful of launches."""
    layers = [
        TuckerLayer(torch.randn(8, 4, 3, 3), *operands((8, 4, 3, 3), (4, 2, 2, 2)))
        for _ in range(5)
    ]
    with torch.profiler.profile() as profile:
        wlib.tucker_merge_many(layers)
    assert sum(event.name == "wlib::rebuild" for event in profile.events()) == 4


def test_compiles_without_graph_breaks() -> None:
    core, factors = operands((8, 4, 3), (3, 2, 2))
    compiled = torch.compile(lambda c, f: wlib.tucker_reconstruct(c, f), fullgraph=True)
    assert torch.equal(compiled(core, factors), wlib.tucker_reconstruct(core, factors))
