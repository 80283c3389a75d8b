"""Linear layers over shared atoms: values, gradients, compressed atoms, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib.reference import atoms as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = ((1, 1, 1, 1), (5, 3, 7, 9), (64, 2, 130, 64), (70, 11, 33, 40), (3, 4, 0, 8), (4, 2, 3, 0))
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make(
    m: int,
    s: int,
    n: int,
    k: int,
    *,
    own: bool = False,
    exact: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """x, atoms, coef, bias, base; if `exact`, integers whose sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(m + n + k)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        if exact:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    coef = draw(m, s, dtype=wide) if own else draw(s, dtype=wide)
    return draw(m, k), draw(s, n, k), coef, draw(n), draw(n, k)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_exact_problems(size: tuple[int, int, int, int], own: bool) -> None:
    for dtype in DTYPES:
        x, atoms, coef, bias, base = make(*size, own=own, dtype=dtype)
        for more in ((), (bias,), (None, base), (bias, base)):
            y = wlib.atoms_linear(x, atoms, coef, *more)
            true = reference.linear(x, atoms, coef, *more).value
            assert y.dtype == dtype
            assert torch.equal(y, true.to(dtype))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_random_problems_stay_within_the_bound(dtype: torch.dtype, own: bool) -> None:
    problem = make(9, 8, 50, 300, own=own, exact=False, dtype=dtype)
    true = reference.linear(*problem)
    error = (wlib.atoms_linear(*problem).double() - true.value).abs()
    assert (error <= true.bound(300 + 8 + 1, dtype)).all()


@pytest.mark.parametrize("own", [False, True])
def test_gradients_reach_every_argument(own: bool) -> None:
    leaves = [t.requires_grad_() for t in make(5, 3, 4, 6, own=own, exact=False, dtype=DTYPES[3])]
    assert torch.autograd.gradcheck(wlib.atoms_linear, leaves)
    assert torch.autograd.gradcheck(wlib.atoms_linear, leaves[:3])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("wanted", range(5))
def test_gradients_are_exact_and_come_alone(wanted: int, own: bool) -> None:
    """In every dtype, also of a gradient whose rows lie apart."""
    for dtype in DTYPES:
        problem = list(make(6, 3, 5, 8, own=own, dtype=dtype))
        dy = torch.randint(-1, 2, (5, 6)).to(dtype).T
        twin = [t.to(torch.float64, copy=True).requires_grad_() for t in problem]
        problem[wanted].requires_grad_()
        wlib.atoms_linear(*problem).backward(dy)
        reference.linear(*twin).value.backward(dy.double())
        assert [t.grad is not None for t in problem] == [i == wanted for i in range(5)]
        assert torch.equal(problem[wanted].grad, twin[wanted].grad.to(problem[wanted].dtype))


def test_leading_dimensions_and_strides_are_seen_through() -> None:
    x, atoms, coef, bias, base = make(6, 3, 5, 8, own=True)
    y = wlib.atoms_linear(x, atoms, coef, bias, base)
    batched = wlib.atoms_linear(x.view(2, 3, 8), atoms, coef.view(2, 3, 3), bias, base)
    assert torch.equal(batched, y.view(2, 3, 5))
    assert torch.equal(
        wlib.atoms_linear(x[0], atoms, coef[0]), wlib.atoms_linear(x, atoms, coef[0])[0]
    )
    wide = torch.cat((x, x), dim=1)
    for other in (wide[:, :8], x.T.contiguous().T):
        assert torch.equal(wlib.atoms_linear(other, atoms, coef, bias, base), y)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("own", [False, True])
def test_fp8_atoms_are_exact(dtype: torch.dtype, own: bool) -> None:
    x, _, coef, bias, base = make(5, 3, 16, 16, own=own, dtype=dtype)
    codes = torch.arange(3 * 256).view(3, 16, 16).to(torch.uint8)
    codes[codes & 127 == 127] = 0  # NaN
    atoms = codes.view(torch.float8_e4m3fn)
    leaves = [t.requires_grad_() for t in (x, coef)]
    y = wlib.atoms_linear(leaves[0], atoms, leaves[1], bias, base)
    assert torch.equal(y, wlib.atoms_linear(x, atoms.to(dtype), coef, bias, base))
    y.float().sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


def int4_atoms(n: int, k: int, groups: tuple[int, ...], **extra: Any) -> list[wlib.Int4Weight]:
    generator = torch.Generator().manual_seed(n + k)

    def draw(group: int) -> wlib.Int4Weight:
        codes = torch.randint(256, (n, k // 2), generator=generator, dtype=torch.uint8)
        scale = torch.rand(n, k // group, generator=generator).bfloat16()
        more = {name: torch.rand(scale.shape if name == "zero_point" else (n,)) for name in extra}
        return wlib.Int4Weight(codes, scale, **more)

    return [draw(group) for group in groups]


INT4_ATOMS = (
    int4_atoms(6, 64, (32, 32, 32)),
    int4_atoms(70, 160, (160, 160, 160), channel_scale=True),
    int4_atoms(130, 192, (64, 64, 64), channel_scale=True),
    int4_atoms(64, 512, (256, 256, 256)),
    int4_atoms(6, 64, (32, 64, 32)),
    int4_atoms(6, 64, (32, 32, 32), zero_point=True),
)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("atoms", INT4_ATOMS)
def test_int4_atoms_are_those_they_stand_for(atoms: list[wlib.Int4Weight], own: bool) -> None:
    """Packed and not, one group size or several, with zero points; none of their bits is lost."""
    x, _, coef, bias, base = make(5, 3, atoms[0].n, atoms[0].k, own=own)
    dense = torch.stack([atom.dequantize() for atom in atoms])
    y = wlib.atoms_linear(x, dense, coef, bias, base)
    assert torch.equal(wlib.atoms_linear(x, atoms, coef, bias, base), y)
    if len({atom.group_size for atom in atoms}) > 1:
        return
    packed = wlib.pack_experts(atoms)
    assert torch.equal(wlib.atoms_linear(x, packed, coef, bias, base), y)
    assert torch.equal(wlib.atoms_linear(x, packed, coef), wlib.atoms_linear(x, dense, coef))
    if packed.has_zero_point:
        return
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        operands = x.to(dtype), coef.to(wide), bias.to(dtype), base.to(dtype)
        y = wlib.atoms_linear(operands[0], packed, *operands[1:])
        true = reference.linear(operands[0], dense, *operands[1:])
        assert y.dtype == dtype
        assert ((y.double() - true.value).abs() <= true.bound(packed.k + 4, dtype)).all()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_beside_int4_atoms(own: bool, dtype: torch.dtype) -> None:
    """Of all but the atoms: those beside the atoms they stand for."""
    x, _, coef, bias, base = make(5, 3, 70, 160, own=own, dtype=dtype)
    packed = wlib.pack_experts(INT4_ATOMS[1])
    dense = torch.stack([atom.dequantize() for atom in INT4_ATOMS[1]]).to(dtype)
    grads = []
    for atoms in (packed, dense):
        leaves = [t.clone().requires_grad_() for t in (x, coef, bias, base)]
        y = wlib.atoms_linear(leaves[0], atoms, *leaves[1:])
        y.backward(torch.ones_like(y))
        grads.append([leaf.grad for leaf in leaves])
    assert all(map(torch.equal, *grads))


def test_packed_int4_atoms_compile_without_a_break() -> None:
    packed = wlib.pack_experts(INT4_ATOMS[0])

    def run(x: Tensor, coef: Tensor) -> Tensor:
        return wlib.atoms_linear(x, packed, coef)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in (3, 5):
        x, coef = torch.randn(m, 64), torch.randn(m, 3)
        assert torch.equal(compiled(x, coef), run(x, coef))


@pytest.mark.parametrize("own", [False, True])
def test_autocast(own: bool) -> None:
    problem = make(5, 3, 6, 8, own=own)
    expected = wlib.atoms_linear(*problem).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for leaf in problem:
            leaf.requires_grad_()
        y = wlib.atoms_linear(*problem)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert [t.grad.dtype for t in problem] == [torch.float32] * 5


@pytest.mark.parametrize("own", [False, True])
def test_compiles_without_a_break(own: bool) -> None:
    def run(*arguments: Any) -> Tensor:
        return wlib.atoms_linear(*arguments)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in (3, 5):
        problem = [t.requires_grad_() for t in make(m, 3, 6, 8, own=own)]
        y = compiled(*problem)
        assert torch.equal(y, wlib.atoms_linear(*problem))
        y.sum().backward()


def test_results_do_not_depend_on_the_values_of_other_rows() -> None:
    """64 tenants: each row is what it is alone."""
    x, atoms, coef, bias, _ = make(64, 4, 10, 24, own=True)
    y = wlib.atoms_linear(x, atoms, coef, bias)
    for m in (0, 17, 63):
        assert torch.equal(y[m : m + 1], wlib.atoms_linear(x[m : m + 1], atoms, coef[m], bias))
