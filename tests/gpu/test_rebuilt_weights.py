"""Rebuilt weights on the GPU, against float64 and the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wlib.reference import rebuild as reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REFERENCES: tuple[Any, ...] = (
    reference.low_rank,
    reference.hadamard,
    reference.kron,
    reference.block_affine,
)


def integers(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-1, 2, shape, generator=draw).float()


def operands_of(draw: torch.Generator, form: int, n: int, k: int, r: int) -> list[Tensor]:
    """Of a layer [n, k]; r divides both. Some are views."""
    shapes = (
        [(n, r), (r, k)],
        [(n, r), (r, k), (n, 2), (2, k)],
        [(n // r, k // r), (r, r)],
        [(n // r, r, r)],
    )[form]
    return [
        integers(draw, *shape[::-1]).T if len(shape) == 2 and i % 2 else integers(draw, *shape)
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layers", [1, 9, 300])
@pytest.mark.parametrize("form", range(4))
def test_exact_layers(form: int, layers: int, dtype: torch.dtype) -> None:
    """More layers than either table holds; tails everywhere."""
    draw = torch.Generator().manual_seed(form + layers)
    sizes = [(7 * (1 + i % 23), 7 * (1 + i % 31), 7) for i in range(layers)]
    operands = [operands_of(draw, form, *size) for size in sizes]
    w0 = [integers(draw, n, k) for n, k, _ in sizes]
    got = torch.ops.wlib.rebuild(
        [w.to(dtype).cuda() for w in w0],
        [a.to(dtype).cuda() for some in operands for a in some],
        [form] * layers,
        [0.5] * layers,
        out_dtype=dtype,
    )
    for w, some, y in zip(w0, operands, got, strict=True):
        exact = REFERENCES[form](w, *(a.contiguous() for a in some), 0.5).value
        assert torch.equal(y.cpu(), exact.view(y.shape).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS[1:])
@pytest.mark.parametrize("form", [0, 1])
def test_tensor_cores_stay_within_the_derived_bound(
    form: int, out_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """Bases that take the rounded delta away: the results show the error of the sums."""
    draw = torch.Generator().manual_seed(form)
    shapes = [(n, k, r) for r in (17, 64, 200) for n, k in ((64, 128), (70, 133), (1, 4096))]
    layers = []
    for n, k, r in shapes:
        sizes = [(n, r), (r, k), (n, r), (r, k)][: 2 + 2 * form]
        operands = [torch.randn(size, generator=draw).to(dtype) for size in sizes]
        w0 = -REFERENCES[form](None, *operands, 0.5).value.to(out_dtype)
        layers.append((w0, operands))
    got = torch.ops.wlib.rebuild(
        [w0.cuda() for w0, _ in layers],
        [a.cuda() for _, operands in layers for a in operands],
        [form] * len(layers),
        [0.5] * len(layers),
    )
    for (_, _, r), (w0, operands), y in zip(shapes, layers, got, strict=True):
        exact = REFERENCES[form](w0, *operands, 0.5)
        bound = exact.bound(r * (1 + form), out_dtype, products=1 + form)
        assert ((y.cpu().double() - exact.value).abs() <= bound).all()


@pytest.mark.parametrize("form", range(4))
def test_stochastic_rounding_gives_the_bits_of_the_cpu(form: int) -> None:
    draw = torch.Generator().manual_seed(form)
    operands = operands_of(draw, form, 24, 36, 4)
    w0 = torch.randint(-(2**13), 2**13, (24, 36), generator=draw) * 2.0**-10
    results = [
        torch.ops.wlib.rebuild(
            [w0.to(device)], [a.to(device) for a in operands], [form], [0.5],
            out_dtype=torch.bfloat16, seed=5,
        )[0].cpu()
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert torch.equal(*results)
