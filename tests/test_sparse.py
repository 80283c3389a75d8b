"""Low rank plus sparse layers: supports, values, gradients, the two ops, the module."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import wlib
from wlib.nn import SparseLowRankLinear
from wlib.reference import sparse_lowrank as reference
from wlib.reference.atoms import F32_EPS, Reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((1, 1), (5, 300), (129, 128), (256, 384), (300, 130))
OPS = torch.ops.wlib


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-2, 3, shape).to(dtype)


# --- supports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 0.8, 1.0])
def test_random_supports_have_their_density(rows: int, columns: int, density: float) -> None:
    support = wlib.sparse_support(rows, columns, density, seed=7)
    indices = support.indices()
    assert support.count == int(density * rows * columns) == len(indices.unique())
    assert support.positions.nbytes == 2 * support.count
    again = wlib.sparse_support(rows, columns, density, seed=7)
    assert torch.equal(again.positions, support.positions)
    if 0 < density < 1 and rows > 1:
        other = wlib.sparse_support(rows, columns, density, seed=8)
        assert not torch.equal(other.positions, support.positions)


def test_places_are_equally_likely() -> None:
    """Of 400 supports of a tenth, every place is in about 40: within 6 standard deviations."""
    hits = torch.zeros(200)
    for seed in range(400):
        hits[wlib.sparse_support(10, 20, 0.1, seed).indices()] += 1
    assert hits.sum() == 400 * 20
    assert (hits - 40).abs().max() < 6 * 36**0.5


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_flat_indices_survive_the_round_trip(rows: int, columns: int) -> None:
    chosen = torch.randperm(rows * columns)[: rows * columns // 3 + 1]
    support, order = wlib.SparseSupport.from_indices(chosen, rows, columns)
    assert torch.equal(chosen[order], support.indices())
    mask = support.dense(torch.ones(support.count)).bool()
    assert torch.equal(mask.flatten().nonzero()[:, 0], chosen.sort().values)
    from_mask = wlib.SparseSupport.from_mask(mask)
    assert torch.equal(from_mask.positions, support.positions)
    assert torch.equal(from_mask.offsets, support.offsets)
    values = torch.randn(support.count)
    assert torch.equal(support.gather(support.dense(values)), values)


# --- values -------------------------------------------------------------------------------------


def layer(
    dtype: torch.dtype, n: int = 300, k: int = 260, rank: int = 5, draw: Any = integers
) -> dict[str, Any]:
    support = wlib.sparse_support(n, k, 0.05)
    made = {"x": draw(2, 19, k), "b": draw(n, rank), "a": draw(rank, k),
            "values": draw(support.count), "bias": draw(n)}  # fmt: skip
    made = {name: tensor.to(dtype) for name, tensor in made.items()}
    return made | {"support": support, "scale": 0.5}


def true_layer(p: dict[str, Any]) -> Reference:
    factors = (p[name] for name in ("x", "b", "a", "values"))
    return reference.linear(*factors, p["support"].indices(), p["scale"], p.get("bias"))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 16, 150])
@pytest.mark.parametrize("transposed", [False, True])
def test_exact_products_match_bit_for_bit(
    transposed: bool, tokens: int, dtype: torch.dtype
) -> None:
    support = wlib.sparse_support(300, 200, 0.04)
    values = integers(support.count, dtype=dtype)
    ins, outs = (300, 200) if transposed else (200, 300)
    x = integers(tokens, ins + 3, dtype=dtype)[:, :ins]  # rows that lie apart
    base, bias = integers(tokens, outs, dtype=dtype), integers(outs, dtype=dtype)
    places = support.positions, support.offsets
    y = OPS.tile_sparse_matmul(x, values, *places, 300, 200, transposed, base, bias)
    s = support.dense(values.double())
    exact = x.double() @ (s if transposed else s.T)
    assert torch.equal(y, (exact + bias.double() + base.double()).to(dtype))
    plain = OPS.tile_sparse_matmul(x, values, *places, 300, 200, transposed)
    assert torch.equal(plain, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_rounded_to_the_type_of_16_bit_activations(dtype: torch.dtype) -> None:
    support = wlib.sparse_support(40, 30, 0.2)
    values, x = torch.randn(support.count), torch.randn(9, 30).to(dtype)
    places = support.positions, support.offsets
    y = OPS.tile_sparse_matmul(x, values, *places, 40, 30)
    assert torch.equal(y, OPS.tile_sparse_matmul(x, values.to(dtype), *places, 40, 30))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 16, 150])
def test_exact_samples_match_bit_for_bit(tokens: int, dtype: torch.dtype) -> None:
    support = wlib.sparse_support(300, 200, 0.04)
    dy, x = (integers(tokens, n + 1, dtype=dtype)[:, :n] for n in (300, 200))
    outs = (torch.float64,) if dtype == torch.float64 else DTYPES
    exact = support.gather(dy.double().T @ x.double())
    for out in outs:
        got = OPS.tile_sampled_matmul(dy, x, support.positions, support.offsets, out)
        assert torch.equal(got, exact.to(out))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_layer_is_sltrains_formula(dtype: torch.dtype) -> None:
    """W = s B A, the values scattered into it by flat indices: the same layer, bit for bit."""
    p = layer(dtype)
    p["x"] = p["x"] / 8  # so that every product fits 16 bits
    y = wlib.sparse_lowrank_linear(**p)
    exact = true_layer(p).value
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(y, exact.to(dtype))
    else:  # x A^T, the low-rank part and the sum are rounded to 16 bits
        error = (y.double() - exact).abs()
        assert (error <= 3.1 * torch.finfo(dtype).eps / 2 * true_layer(p).magnitude).all()


def test_flat_indices_of_sltrain_are_taken_as_they_are() -> None:
    indices = torch.randperm(130 * 140)[:500]
    values = torch.randn(500, requires_grad=True)
    x, b, a = torch.randn(7, 140), torch.randn(130, 4), torch.randn(4, 140)
    support, order = wlib.SparseSupport.from_indices(indices, 130, 140)
    expected = wlib.sparse_lowrank_linear(x, b, a, values[order], support, 0.5)
    y = wlib.sparse_lowrank_linear(x, b, a, values, indices, 0.5)
    assert torch.equal(y, expected)
    grads = [torch.autograd.grad(out.square().sum(), values)[0] for out in (y, expected)]
    assert torch.equal(*grads)
    with pytest.raises(ValueError, match=r"expected values of shape \[500\], got \[499\]"):
        wlib.sparse_lowrank_linear(x, b, a, values[1:], indices)


def test_random_layers_stay_within_the_bound() -> None:
    """Sums of float32 products in any order: rank + K + the chain's two sums of K and rank."""
    p = layer(torch.float32, draw=torch.randn)
    error = (wlib.sparse_lowrank_linear(**p).double() - true_layer(p).value).abs()
    assert (error <= (2 * 260 + 2 * 5 + 8) * F32_EPS * true_layer(p).magnitude).all()


NAMES = ("x", "b", "a", "values")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_dense_weight(dtype: torch.dtype) -> None:
    p = layer(dtype)
    leaves = {name: p[name].requires_grad_() for name in (*NAMES, "bias")}
    dy = integers(2, 19, 300, dtype=dtype)
    wlib.sparse_lowrank_linear(**p).backward(dy)
    factors = (p[name].detach() for name in NAMES)
    true = reference.gradients(dy, *factors, p["support"].indices(), p["scale"])
    for name, exact in zip(NAMES, true, strict=True):
        assert torch.equal(leaves[name].grad, exact.value.to(dtype)), name
    assert torch.equal(leaves["bias"].grad, dy.sum((0, 1)))


def small(**options: Any) -> tuple[list[Tensor], wlib.SparseSupport]:
    support = wlib.sparse_support(6, 5, 0.3)
    shapes = ((2, 3, 5), (6, 2), (2, 5), (support.count,), (6,))
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes], support


def test_gradcheck_twice() -> None:
    leaves, support = small()

    def run(x: Tensor, b: Tensor, a: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return wlib.sparse_lowrank_linear(x, b, a, values, support, 0.7, bias)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck_of_the_ops(transposed: bool) -> None:
    (x, _, _, values, bias), support = small()
    places = support.positions, support.offsets
    dy = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    arguments = (dy, values, x) if transposed else (x, values, dy, bias)

    def run(left: Tensor, v: Tensor, base: Tensor, more: Tensor | None = None) -> Tensor:
        y: Tensor = OPS.tile_sparse_matmul(left, v, *places, 6, 5, transposed, base, more)
        return y

    def sample(left: Tensor, right: Tensor) -> Tensor:
        values: Tensor = OPS.tile_sampled_matmul(left, right, *places)
        return values

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(run, arguments)
        assert check(sample, (dy, x))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    p = layer(torch.float32, draw=torch.randn)
    support, dy = p["support"], torch.randn(2, 19, 300)
    places = support.positions, support.offsets
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((
            OPS.tile_sparse_matmul(p["x"], p["values"], *places, 300, 260),
            OPS.tile_sparse_matmul(dy, p["values"], *places, 300, 260, True),
            OPS.tile_sampled_matmul(dy, p["x"], *places),
        ))  # fmt: skip
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def bits_of_products() -> str:
    """A digest of both ops' results on random numbers."""
    torch.manual_seed(0)
    p = layer(torch.float32, draw=torch.randn)
    places = p["support"].positions, p["support"].offsets
    y = OPS.tile_sparse_matmul(p["x"], p["values"], *places, 300, 260)
    both = y, OPS.tile_sampled_matmul(torch.randn(2, 19, 300), p["x"], *places)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in both)).hexdigest()


def test_every_instruction_set_gives_the_same_bits() -> None:
    code = "import test_sparse; print(test_sparse.bits_of_products())"
    folders = os.pathsep.join(sys.path)
    environment = {**os.environ, "WLIB_CPU_ISA": "baseline", "PYTHONPATH": folders}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == bits_of_products()


def test_a_token_does_not_see_its_batch() -> None:
    p = layer(torch.float32, draw=torch.randn)
    support, x = p["support"], torch.randn(200, 260)
    places = support.positions, support.offsets
    full = OPS.tile_sparse_matmul(x, p["values"], *places, 300, 260)
    for m in (1, 15, 17, 129):
        assert torch.equal(OPS.tile_sparse_matmul(x[:m], p["values"], *places, 300, 260), full[:m])


def test_nan_reaches_what_it_multiplies() -> None:
    support = wlib.SparseSupport.from_mask(torch.eye(3, dtype=torch.bool))
    x = torch.ones(2, 3)
    x[1, 2] = torch.nan
    y = OPS.tile_sparse_matmul(x, torch.ones(3), support.positions, support.offsets, 3, 3)
    assert y.isnan().tolist() == [[False] * 3, [False, False, True]]


def test_the_dense_weight_is_never_made() -> None:
    """Nothing of N x K elements is allocated, forward or backward."""
    support = wlib.sparse_support(2048, 2048, 0.01)
    x, b, a, values = (
        torch.randn(shape, requires_grad=True)
        for shape in ((2, 2048), (2048, 4), (4, 2048), (support.count,))
    )
    with torch.profiler.profile(profile_memory=True) as profile:
        wlib.sparse_lowrank_linear(x, b, a, values, support).sum().backward()
    sizes = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(sizes) < 2048 * 2048


# --- programs -----------------------------------------------------------------------------------


def test_compile_with_gradients_and_dynamic_tokens() -> None:
    module = SparseLowRankLinear(40, 24, 4, 0.1)
    nn.init.normal_(module.b)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 8):
        x = torch.randn(tokens, 40)
        found = []
        for run in (module, compiled):
            own = x.clone().requires_grad_()
            y = run(own)
            grads = torch.autograd.grad(y.square().sum(), [own, *module.parameters()])
            found.append((y, *grads))
        for eager, traced in zip(*found, strict=True):
            torch.testing.assert_close(traced, eager)


def test_autocast() -> None:
    module = SparseLowRankLinear(40, 24, 4, 0.1)
    nn.init.normal_(module.b)
    x = torch.randn(7, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x @ module.dense().T + module.bias, atol=0.1, rtol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_training_lowers_the_loss() -> None:
    module = SparseLowRankLinear(64, 48, 8, 0.1, alpha=8)
    target, x = torch.randn(48, 64) / 8, torch.randn(256, 64)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (module(x) - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# --- the module ---------------------------------------------------------------------------------


def test_a_new_module_starts_as_sltrain_does() -> None:
    module = SparseLowRankLinear(256, 300, 16, 0.05, alpha=32)
    assert module.scale == 2.0
    assert module.support.count == int(0.05 * 256 * 300)
    assert not module.b.any()
    for parameter, bound in ((module.a, 1 / 16), (module.values, 1 / 16), (module.bias, 300**-0.5)):
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert repr(module) == (
        "SparseLowRankLinear(in_features=256, out_features=300, rank=16, density=0.05, "
        "scale=2.0, bias=True)"
    )


def test_the_module_is_its_dense_weight() -> None:
    module = SparseLowRankLinear(130, 140, 3, bias=False)
    nn.init.normal_(module.b)
    x = torch.randn(2, 5, 130)
    torch.testing.assert_close(module(x), x @ module.dense().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_survives_safetensors_copies_and_casts(dtype: torch.dtype, tmp_path: Path) -> None:
    module = SparseLowRankLinear(200, 140, 3, seed=5).to(dtype)
    nn.init.normal_(module.b)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "layer.safetensors")
    other = SparseLowRankLinear(200, 140, 3, seed=6, dtype=dtype)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 200, dtype=dtype)
    for twin in (other, copy.deepcopy(module), module):
        assert torch.equal(twin(x), module(x))
        assert twin.positions.dtype == torch.int16
        assert twin.offsets.dtype == torch.int64
    assert copy.deepcopy(module).positions.data_ptr() != module.positions.data_ptr()
    assert module.positions.nbytes == 2 * module.values.numel()


def test_a_wrong_support_is_refused_when_it_is_loaded() -> None:
    module = SparseLowRankLinear(200, 140, 3)
    state = module.state_dict()
    state["positions"] = state["positions"].flip(0)
    with pytest.raises(ValueError, match="positions"):
        SparseLowRankLinear(200, 140, 3).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_linear_beats_low_rank_alone(dtype: torch.dtype) -> None:
    linear = nn.Linear(96, 80, dtype=dtype).eval()
    module = SparseLowRankLinear.from_linear(linear, 16, 0.1)
    w = linear.weight.detach().double()
    low_rank = (module.b.double() @ module.a.double()).detach()
    error = (module.dense().double() - w).square()
    assert error.sum() < 0.95 * (low_rank - w).square().sum()
    on_support = module.support.gather(error.detach()).max().sqrt()
    assert on_support <= 2 * torch.finfo(dtype).eps * w.abs().max()
    assert not module.training
    assert torch.equal(module.bias, linear.bias)


def test_from_linear_of_a_full_rank_is_the_layer() -> None:
    linear = nn.Linear(20, 12)
    module = SparseLowRankLinear.from_linear(linear, 15)
    torch.testing.assert_close(module.dense(), linear.weight)
