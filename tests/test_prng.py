"""Philox against published vectors; sums of random bases against their definition."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wlib
from sim_problems import probe, to_bf16

DISTS = ("uniform", "sign", "normal")
SEED = 0x0123456789ABCDEF

# Known answers of Random123 for philox4x32, 10 rounds: counter, key, result.
VECTORS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(probe.philox(counter, *key)) == expected


def philox(counter: list[int], key: list[int]) -> list[int]:
    """The definition, in integers."""
    mask = 0xFFFFFFFF
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q & mask, p >> 32 ^ d ^ m, p & mask
        k, m = (k + 0x9E3779B9) & mask, (m + 0xBB67AE85) & mask
    return [a, b, c, d]


def basis(i: int, elements: int, seed: int, dist: str, tensor_id: int) -> list[float]:
    """Basis i by its documented key, in float64."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    values: list[float] = []
    block = 0
    while len(values) < elements:
        number = i // 4 if dist == "sign" else i
        words = philox([block, 0, number, tensor_id], key)
        if dist == "sign":
            values += [-1.0 if words[i % 4] >> bit & 1 else 1.0 for bit in range(32)]
        elif dist == "uniform":
            values += [(w - (w >> 31 << 32) >> 8) * 2.0**-23 for w in words]
        else:
            for u, v in (words[:2], words[2:]):
                radius = np.sqrt(-2 * np.log(((u >> 8) + 1) * 2.0**-24))
                angle = 2 * np.pi * (v >> 8) * 2.0**-24
                values += [radius * np.cos(angle), radius * np.sin(angle)]
        block += 1
    return values[:elements]


@pytest.mark.parametrize("dist", DISTS)
def test_bases_are_what_the_key_says(dist: str) -> None:
    for i, tensor_id, seed in ((0, 0, SEED), (1, 0, SEED), (6, 5, 3), (3, 2**32 - 1, -1)):
        coef = torch.zeros(8)
        coef[i] = 1
        got = wlib.prng_expand(coef, (7, 11), seed, dist, tensor_id=tensor_id).flatten()
        exact = torch.tensor(basis(i, 77, seed, dist, tensor_id), dtype=torch.float64)
        error = (got.double() - exact).abs().max()
        assert error <= (2**-20 if dist == "normal" else 0)


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize(("k", "shape"), [(0, (5,)), (3, (0, 4)), (9, (13, 5)), (70, (300,))])
def test_nola_is_the_sum_over_bases(dist: str, k: int, shape: tuple[int, ...]) -> None:
    """NOLA: A = sum_i alpha_i A_i over bases that follow from a seed (there scaled by 1/sqrt k)."""
    coef = torch.randn(k) * 0.1
    elements = int(np.prod(shape))
    bases = [basis(i, elements, SEED, dist, 1) for i in range(k)]
    stacked = torch.tensor(bases, dtype=torch.float64).view(k, *shape)
    exact = torch.einsum("i,i...->...", coef.double(), stacked)
    magnitude = torch.einsum("i,i...->...", coef.double().abs(), stacked.abs())
    got = wlib.prng_expand(coef, shape, SEED, dist, tensor_id=1)
    # A rounding per addition; normal numbers are 2^-20 off, and more than 2^-4 nearly always.
    bound = k * 2.0**-24 * magnitude + coef.abs().sum().double() * (dist == "normal") * 2.0**-20
    assert ((got.double() - exact).abs() <= bound).all()
    rounded = wlib.prng_expand(coef, shape, SEED, dist, tensor_id=1, out_dtype=torch.bfloat16)
    assert torch.equal(rounded, got.bfloat16())


@pytest.mark.parametrize("dist", DISTS)
def test_gradients(dist: str) -> None:
    coef = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: wlib.prng_expand(c, (3, 13), 4, dist), coef)


@pytest.mark.parametrize("dist", DISTS)
def test_moments(dist: str) -> None:
    """Mean 0 and the distribution's variance, within five standard errors; bases uncorrelated."""
    n = 1 << 18
    first, second = (
        wlib.prng_expand(torch.eye(2)[i].contiguous(), (n,), 11, dist).double() for i in range(2)
    )
    variance = 1 / 3 if dist == "uniform" else 1.0
    fourth = {"uniform": 1 / 5, "sign": 1.0, "normal": 3.0}[dist]
    assert abs(first.mean()) < 5 * (variance / n) ** 0.5
    assert abs(first.square().mean() - variance) <= 5 * ((fourth - variance**2) / n) ** 0.5 + 1e-6
    assert abs((first * second).mean()) < 5 * variance / n**0.5


def test_compiles_without_graph_breaks() -> None:
    coef = torch.randn(4, requires_grad=True)
    compiled = torch.compile(lambda c: wlib.prng_expand(c, (6, 5), 3), fullgraph=True)
    assert torch.equal(compiled(coef), wlib.prng_expand(coef, (6, 5), 3))
    compiled(coef).square().sum().backward()
    assert coef.grad is not None


@pytest.mark.parametrize("dist", DISTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 1), (6, 517), (5, 4099)])
def test_kernel_gives_the_bits_of_the_cpu(dist: str, dtype: Any, k: int, n: int) -> None:
    coef = np.random.default_rng(k).standard_normal(k).astype(np.float32)
    out = np.full(n, 0x7FC1 if dtype is np.uint16 else np.nan, dtype)
    key = {"distribution": DISTS.index(dist), "seed": SEED, "tensor": 7}
    report = probe.prng_expand(coef, out, **key, options=probe.Options(seed=n))
    assert report.findings == []
    expected = wlib.prng_expand(torch.from_numpy(coef), (n,), SEED, dist, tensor_id=7).numpy()
    expected = to_bf16(expected) if dtype is np.uint16 else expected.astype(dtype)
    np.testing.assert_array_equal(out, expected)


def expand(**changed: Any) -> Tensor:
    arguments: dict[str, Any] = {"coef": torch.zeros(3), "shape": (2, 2), "seed": 1}
    return wlib.prng_expand(**arguments | changed)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: expand(coef=torch.zeros(3).half()), TypeError,
     "prng_expand: expected coef of dtype torch.float32, got torch.float16 (argument 'coef')"),
    (lambda: expand(coef=torch.zeros(3, 1)), ValueError,
     "prng_expand: expected coef of one dimension, of fewer than 2^31, got [3, 1] "
     "(argument 'coef')"),
    (lambda: expand(coef=torch.zeros(6)[::2]), ValueError,
     "prng_expand: expected contiguous coef, got strides [2] (argument 'coef')"),
    (lambda: expand(shape=(2, -1)), ValueError, "prng_expand: expected sizes of at least 0 and at "
     "most 2^40 elements, got [2, -1] (argument 'shape')"),
    (lambda: expand(shape=(2**21, 2**21)), ValueError, "prng_expand: expected sizes of at least 0 "
     "and at most 2^40 elements, got [2097152, 2097152] (argument 'shape')"),
    (lambda: expand(dist="gaussian"), ValueError, "prng_expand: expected dist 'uniform', 'sign' or "
     "'normal', got 'gaussian' (argument 'dist')"),
    (lambda: expand(tensor_id=2**32), ValueError,
     "prng_expand: expected tensor_id from 0 to 2^32 - 1, got 4294967296 (argument 'tensor_id')"),
    (lambda: expand(tensor_id=-1), ValueError,
     "prng_expand: expected tensor_id from 0 to 2^32 - 1, got -1 (argument 'tensor_id')"),
    (lambda: expand(out_dtype=torch.int32), TypeError, "prng_expand: expected out_dtype of dtype "
     "torch.float32, torch.bfloat16 or torch.float16, got torch.int32 (argument 'out_dtype')"),
    (lambda: expand(coef=torch.zeros(3).double(), out_dtype=torch.float32), TypeError,
     "prng_expand: expected out_dtype of dtype torch.float64 like coef, got torch.float32 "
     "(argument 'out_dtype')"),
]  # fmt: skip
PROJECT: list[tuple[tuple[Any, ...], str]] = [
    ((torch.zeros(3), -1, 0, "sign", 0),
     "expected count from 0 to 2^31 - 1, got -1 (argument 'count')"),
    ((torch.zeros(3).int(), 1, 0, "sign", 0), "expected values of dtype torch.float32, "
     "torch.bfloat16 or torch.float16, got torch.int32 (argument 'values')"),
    ((torch.zeros(6)[::2], 1, 0, "sign", 0),
     "expected contiguous values, got strides [2] (argument 'values')"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_refuses(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape('wlib::' + message)}$"):
        call()


@pytest.mark.parametrize(("arguments", "message"), PROJECT)
def test_gradient_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('wlib::prng_project: ' + message)}$"):
        torch.ops.wlib.prng_project(*arguments)
