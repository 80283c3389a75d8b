"""Linear layers over shared atoms on the GPU, against float64 and against the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

import wlib
from wlib.reference import atoms as reference

DTYPES = (torch.bfloat16, torch.float16)
SIZES = (  # tokens, atoms, rows, columns
    (1, 1, 1, 8),
    (5, 3, 130, 72),
    (64, 8, 4096, 512),
    (17, 11, 300, 1000),
    (3, 300, 20, 64),
)


def draw(m: int, s: int, n: int, k: int, *, own: bool, exact: bool, dtype: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(m + s + n + k)

    def values(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        if exact:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator).to(dtype)

    coef = values(*((m, s) if own else (s,)), dtype=torch.float32)
    if exact:  # or sums would leave the integers of bfloat16
        coef *= torch.rand(coef.shape, generator=generator) < min(1, 4 / s)
        x = values(m, k) * (torch.rand(m, k, generator=generator) < min(1, 64 / k))
        return [x, values(s, n, k), coef, values(n), values(n, k)]
    return [values(m, k), values(s, n, k), coef, values(n), values(n, k)]


def run(operands: list[Tensor]) -> Tensor:
    return wlib.atoms_linear(*(t.cuda() for t in operands)).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_exact_problems(size: tuple[int, ...], own: bool, dtype: torch.dtype) -> None:
    operands = draw(*size, own=own, exact=True, dtype=dtype)
    for kept in (operands, operands[:3]):
        assert torch.equal(run(kept), reference.linear(*kept).value.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [False, True])
def test_random_problems_stay_within_the_bound(own: bool, dtype: torch.dtype) -> None:
    """Both kernels and the route by the weight; the same bits each time."""
    for m in (1, 64, 65, 200):
        operands = draw(m, 5, 200, 1024, own=own, exact=False, dtype=dtype)
        y = run(operands)
        true = reference.linear(*operands)
        bound = true.bound(1024, dtype)
        if m > 64 and not own:  # the weight is rounded to the type of x
            bound = bound + true.magnitude * torch.finfo(dtype).eps / 2
        assert ((y.double() - true.value).abs() <= bound).all()
        assert torch.equal(y, run(operands))


@pytest.mark.parametrize("m", [3, 100])
@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 24), (torch.bfloat16, 9)])
def test_one_set_of_coefficients_is_served_whatever_type_and_size(
    m: int, dtype: torch.dtype, k: int
) -> None:
    operands = draw(m, 3, 50, k, own=False, exact=True, dtype=dtype)
    assert torch.equal(run(operands), reference.linear(*operands).value.to(dtype))


@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 24), (torch.bfloat16, 9)])
def test_coefficients_per_token_are_refused_where_there_is_no_kernel(
    dtype: torch.dtype, k: int
) -> None:
    with pytest.raises(NotImplementedError, match=f"coefficients per token .* K = {k} on cuda"):
        run(draw(3, 3, 50, k, own=True, exact=True, dtype=dtype))


def test_guard_bands() -> None:
    """Nothing is written beyond y: its neighbours in a graph's pool keep their values."""
    operands = [t.cuda() for t in draw(5, 3, 130, 72, own=True, exact=True, dtype=torch.bfloat16)]
    wlib.atoms_linear(*operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        before = torch.zeros(1 << 12, device="cuda")
        y = wlib.atoms_linear(*operands)
        after = torch.zeros(1 << 12, device="cuda")
    graph.replay()
    assert torch.equal(y.cpu(), wlib.atoms_linear(*(t.cpu() for t in operands)))
    assert not before.any()
    assert not after.any()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_cpu(own: bool, dtype: torch.dtype) -> None:
    operands = draw(6, 3, 16, 24, own=own, exact=True, dtype=dtype)
    grads = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device, copy=True).requires_grad_() for t in operands]
        wlib.atoms_linear(*leaves).sum().backward()
        grads.append([leaf.grad.cpu() for leaf in leaves if leaf.grad is not None])
    assert len(grads[0]) == 5
    assert all(map(torch.equal, *grads))
