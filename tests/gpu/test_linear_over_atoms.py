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
    (70, 5, 300, 208),
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
    calls = [operands, operands[:3]]
    if size[3] % 16 == 0:
        x, atoms, *rest = operands
        calls += [[x, atoms.to(torch.float8_e4m3fn), *rest]]
    for kept in calls:
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


def draw_int4(s: int, n: int, k: int, group_size: int) -> wlib.PackedInt4Experts:
    """All codes, scales that are powers of two."""

    def weight() -> wlib.Int4Weight:
        codes = torch.randint(256, (n, k // 2), dtype=torch.uint8)
        scale, channel = (2.0 ** torch.randint(-1, 3, (n, c)) for c in (k // group_size, 1))
        return wlib.Int4Weight(codes, scale.bfloat16(), None, channel.flatten())

    torch.manual_seed(s + n + k)
    return wlib.pack_experts([weight() for _ in range(s)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("size", "group_size"),
    [((1, 1, 1, 32), 32), ((5, 3, 130, 96), 32), ((70, 5, 300, 192), 64), ((33, 8, 4096, 512), 128),
     ((3, 130, 20, 256), 256)],
)  # fmt: skip
def test_int4_atoms(size: tuple[int, ...], group_size: int, own: bool, dtype: torch.dtype) -> None:
    """Sums are exact in float32, whatever their order."""
    x, _, *rest = draw(*size, own=own, exact=True, dtype=dtype)
    packed = draw_int4(*size[1:], group_size)
    dense = torch.stack([packed[i].unpack().dequantize() for i in range(packed.experts)])
    moved = [t.cuda() for t in (x, *rest)]
    for kept in (1, 3):
        y = wlib.atoms_linear(moved[0], packed.to("cuda"), *moved[1 : 1 + kept])
        assert torch.equal(y.cpu(), reference.linear(x, dense, *rest[:kept]).value.to(dtype))


def test_int4_atoms_beside_float32_are_converted() -> None:
    packed = draw_int4(3, 70, 64, 32)
    x, _, coef, _, base = draw(5, 3, 70, 64, own=False, exact=True, dtype=torch.float32)
    y = wlib.atoms_linear(x.cuda(), packed.to("cuda"), coef.cuda(), None, base.cuda())
    assert torch.equal(y.cpu(), wlib.atoms_linear(x, packed, coef, None, base))
    with pytest.raises(ValueError, match="no kernel for INT4 atoms"):
        torch.ops.wlib.atoms_linear(
            x.cuda(), packed.data.cuda(), coef.cuda(), n=packed.n, group_size=32
        )


@pytest.mark.parametrize("m", [3, 100])
@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 24), (torch.bfloat16, 9)])
def test_one_set_of_coefficients_is_served_whatever_type_and_size(
    m: int, dtype: torch.dtype, k: int
) -> None:
    operands = draw(m, 3, 50, k, own=False, exact=True, dtype=dtype)
    y = reference.linear(*operands).value.to(dtype)
    assert torch.equal(run(operands), y)
    operands[1] = operands[1].to(torch.float8_e4m3fn)
    assert torch.equal(run(operands), y)


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
