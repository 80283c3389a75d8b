"""fp4_linear and FP4Linear: values, gradients, what is saved, caching, compilers, wrappers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.checkpoint import checkpoint

import wlib
from example_modules import example
from wlib import _block_scaled
from wlib._ops import fp4_linear as ops_fp4_linear
from wlib.fp4_recipe import RECIPES
from wlib.nn import FP4Linear

SWITCHES = [{name: kind} for name in ("forward", "dgrad", "wgrad") for kind in ("bf16", "fp8")]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def gradients(recipe: Any, x: Tensor, w: Tensor, dy: Tensor, step: int = 0) -> list[Tensor]:
    """y, dX, dW of one call."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = wlib.fp4_linear(x, w, recipe=recipe, state=torch.tensor([3, step]))
    y.backward(dy.to(y.dtype))
    return [y.detach(), x.grad, w.grad]  # type: ignore[list-item]


def problem(m: int, k: int, n: int, heavy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x, w, dy = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(m, n)
    if heavy:
        x, dy = x * torch.exp(torch.randn(k)), dy * torch.exp(torch.randn(m, 1))
    return x, w, dy


# Cosines of y, and of dX and dW where the forward pass is exact.
COSINES = {
    "wlib": (0.985, 0.985),
    "quartet": (0.984, 0.985),
    "quartet_v1": (0.97, 0.970),
    "quartet2": (0.992, 0.989),
    "nvidia": (0.988, 0.980),
}


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_cosines(name: str, heavy: bool) -> None:
    x, w, dy = problem(512, 384, 256, heavy)
    y = gradients(name, x, w, dy)[0]
    assert cosine(y, x @ w.T) >= COSINES[name][0]
    # What only the backward pass loses; recipes that quantise x itself lose that, too.
    recipe = RECIPES[name]
    backward = recipe if not recipe.requantize_x else dataclasses.replace(recipe, forward="bf16")
    _, dx, dw = gradients(backward, x.bfloat16().float(), w.bfloat16().float(), dy)
    assert cosine(dx, dy @ w) >= COSINES[name][1]
    assert cosine(dw, dy.T @ x) >= COSINES[name][1]


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        (name, switch)
        for name, recipe in RECIPES.items()
        for switch in ({}, *SWITCHES)
        if recipe.requantize_x or "forward" not in switch  # else there is no such recipe
    ]
    + [
        ("wlib", {"hadamard": 0, "requantize_x": False, **switch})
        for switch in ({}, {"wgrad_hadamard": 32}, {"dgrad": "bf16"})
    ],
    ids=str,
)
def test_every_product_is_one_that_the_gpu_has_a_kernel_for(
    name: str, switch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two carriers or two packed matrices, rows of a multiple of 32; docs/design/fp4_matmul.md."""
    seen = []
    multiply = ops_fp4_linear._multiply

    def recorded(a: list[Tensor], b: list[Tensor], *rest: Any) -> Tensor:
        seen.append((a, b))
        return multiply(a, b, *rest)

    monkeypatch.setattr(ops_fp4_linear, "_multiply", recorded)
    x, w, dy = problem(5, 17, 9)
    got = gradients(dataclasses.replace(RECIPES[name], **switch), x, w, dy)
    assert min(map(cosine, got, (x @ w.T, dy @ w, dy.T @ x))) > 0.9
    assert len(seen) == 3 - list(switch.values()).count("bf16")
    for pair in seen:
        carriers = [six[3].shape != (0,) for six in pair]
        assert carriers[0] == carriers[1]
        for six, carrier in zip(pair, carriers, strict=True):
            assert (six[3] if carrier else six[0]).shape[1] % (32 if carrier else 16) == 0


@pytest.mark.parametrize("name", ["wlib", "quartet2", "quartet_v1"])
def test_gradients_are_unbiased_over_steps(name: str) -> None:
    """The mean over 64 steps approaches the gradient of what the forward pass multiplied."""
    x, w, dy = problem(128, 96, 64, heavy=True)
    recipe = dataclasses.replace(RECIPES[name], forward="bf16", mask=False)
    x, w = x.bfloat16().float(), w.bfloat16().float()
    draws = [gradients(recipe, x, w, dy, step) for step in range(64)]
    for i, exact in ((1, dy @ w), (2, dy.T @ x)):
        mean = torch.stack([draw[i] for draw in draws]).double().mean(dim=0)
        single = (draws[0][i] - exact).square().sum() / exact.square().sum()
        averaged = (mean - exact).square().sum() / exact.square().sum()
        assert averaged < single / 64 * 1.5
        assert abs((mean * exact).sum() / exact.square().sum() - 1) < 5e-3


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(*s.items()))
def test_switches(switches: dict[str, str]) -> None:
    """The matmul that is switched gains; the others stay what they were."""
    x, w, dy = problem(96, 160, 72)
    base = gradients("wlib", x, w, dy)
    got = gradients(dataclasses.replace(RECIPES["wlib"], **switches), x, w, dy)
    exact = [x @ w.T, dy @ w, dy.T @ x]
    index = {"forward": 0, "dgrad": 1, "wgrad": 2}[next(iter(switches))]
    assert cosine(got[index], exact[index]) > cosine(base[index], exact[index]) + 3e-3
    if index:
        for other in {0, 1, 2} - {index}:
            assert torch.equal(got[other], base[other])
    plain = gradients(dataclasses.replace(
        RECIPES["wlib"], forward="bf16", dgrad="bf16", wgrad="bf16"), x, w, dy)  # fmt: skip
    assert min(map(cosine, plain, exact)) > 0.9999


def rotated_values(matrix: Tensor, rule: str, mask: bool = False) -> Any:
    return wlib.fp4_quantize(matrix, hadamard=32, scale_rule=rule, return_mask=mask)


def test_quartet_is_its_formula() -> None:
    """Both gradients from the public ops: requantised X_q and W_q, mask, inverse rotation."""
    x, w, dy = problem(64, 96, 128)
    y, dx, dw = gradients("quartet", x, w, dy)
    qx, qw = (rotated_values(t, "quest", True) for t in (x, w))
    assert cosine(y, qx.dequantize() @ qw.dequantize().T) > 1 - 1e-6
    signs = wlib.fp4_signs(torch.tensor([3, 0]), 32)

    def turned(q: Any, **options: Any) -> Tensor:
        options |= {"hadamard": 32, "signs": signs, "scale_rule": "three_quarters"}
        if isinstance(q, wlib.FP4Tensor):
            return wlib.fp4_requantize_t(q, **options).dequantize()
        return wlib.fp4_quantize(q, **options).dequantize()

    def masked(gradient: Tensor, q: Any) -> Tensor:
        bits = torch.stack([q.mask >> i & 1 for i in range(8)], dim=2).flatten(1)
        assert 0.5 < bits.float().mean() < 1
        return wlib.hadamard(gradient * bits, 32, inverse=True)

    alpha = 16 / 9 * 1.009276**2
    expected = masked(alpha * turned(dy) @ turned(qw).T, qx)
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-4)
    expected = masked(alpha * turned(dy, axis=0) @ turned(qx).T, qw)
    torch.testing.assert_close(dw, expected, rtol=1e-4, atol=1e-4)


def test_nvidia_multiplies_the_same_weight_in_both_passes() -> None:
    x, w, dy = problem(64, 96, 128)
    y, dx, dw = gradients("nvidia", x, w, dy)
    wq = wlib.fp4_quantize(w, "nvfp4", square=True).dequantize()
    xq = wlib.fp4_quantize(x, "nvfp4").dequantize()
    torch.testing.assert_close(y, xq @ wq.T, rtol=1e-4, atol=1e-4)
    seed = torch.tensor([3, 0])
    gq = wlib.fp4_quantize(dy, "nvfp4", rounding="stochastic", seed=seed).dequantize()
    torch.testing.assert_close(dx, gq @ wq, rtol=1e-4, atol=1e-4)
    signs = wlib.fp4_signs(3, 16)  # of no step
    turned = {"hadamard": 16, "signs": signs, "axis": 0}
    gt = wlib.fp4_quantize(dy, "nvfp4", rounding="stochastic", seed=seed, **turned).dequantize()
    xt = wlib.fp4_quantize(x, "nvfp4", **turned).dequantize()
    torch.testing.assert_close(dw, gt @ xt.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blackwell", [False, True])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 33, 7), (129, 40, 65), (0, 64, 32)])
def test_any_shape_equals_the_padded_one(
    name: str, shape: tuple[int, int, int], blackwell: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_block_scaled, "serves", lambda device: blackwell)
    m, k, n = shape
    x, w, dy = problem(m, k, n)
    got = gradients(name, x, w, dy)
    assert [list(t.shape) for t in got] == [[m, n], [m, k], [n, k]]
    grow = [-size % 128 for size in shape]
    padded = gradients(name, nn.functional.pad(x, (0, grow[1], 0, grow[0])),
                       nn.functional.pad(w, (0, grow[1], 0, grow[2])),
                       nn.functional.pad(dy, (0, grow[2], 0, grow[0])))  # fmt: skip
    if m and RECIPES[name].grad_rounding == "nearest":  # random bits are numbered by place
        for a, b in zip(got, padded, strict=True):
            torch.testing.assert_close(a, b[: a.shape[0], : a.shape[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blackwell", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_saved_bytes(name: str, blackwell: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed FP4 only: against the x and W in BF16 that nn.Linear keeps."""
    monkeypatch.setattr(_block_scaled, "serves", lambda device: blackwell)
    saved: list[Tensor] = []
    layer = FP4Linear(1024, 512, recipe=name)
    x = torch.randn(2048, 1024, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x).sum()
    part = sum(t.numel() * t.element_size() for t in saved) / (2 * (x.numel() + 1024 * 512))
    recipe = RECIPES[name]
    assert part <= (0.34 if recipe.mask else 0.27 if recipe.format == "mxfp4" else 0.285)


def count_weights(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    calls: list[Tensor] = []
    real = wlib.fp4_weight

    def counted(w: Tensor, recipe: Any) -> list[Tensor]:
        calls.append(w)
        return real(w, recipe)

    monkeypatch.setattr("wlib.nn.fp4.fp4_weight", counted)
    return calls


def test_the_weight_is_quantised_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_weights(monkeypatch)
    layer = FP4Linear(64, 32)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(3):
        for _ in range(4):
            layer(torch.randn(8, 64)).sum().backward()
        optimiser.step()
        assert len(calls) == step + 1
    x = torch.randn(8, 64)
    fresh = wlib.fp4_linear(x, layer.weight, layer.bias, state=layer.fp4_state)
    assert torch.equal(layer(x), fresh)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.mul_(2)
    assert not torch.equal(other(x), layer(x))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(other(x), layer(x))
    layer.double().float()
    layer.weight.data.mul_(3)
    layer.forget_quantized()
    assert not torch.equal(other(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    # Another tensor in the parameter's place, as FSDP has it, is never looked up by its version.
    before = len(calls)
    unsharded = torch.zeros(32, 64)
    for _ in range(2):
        torch.func.functional_call(layer, {"weight": unsharded}, (x,))
    assert len(calls) == before + 2
    layer.load_state_dict(other.state_dict())
    assert torch.equal(other(x), layer(x))
    version = layer.weight._version
    layer.weight.data = torch.ones(32, 64)  # other memory under the same version
    assert layer.weight._version == version
    assert not torch.equal(other(x), layer(x))
    layer.weight = nn.Parameter(torch.zeros(32, 64))
    assert torch.equal(layer(x), layer.bias.expand(8, 32))


def test_drop_in_for_linear() -> None:
    linear = nn.Linear(48, 24)
    layer = FP4Linear.from_linear(linear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    layer.load_state_dict(linear.state_dict())
    state = layer.state_dict()
    assert set(state) == {"weight", "bias", "fp4_state"}
    layer.fp4_state[1] = 7
    layer.load_state_dict(layer.state_dict() | {"fp4_state": torch.tensor([5, 9])})
    assert layer.fp4_state.tolist() == [5, 9]
    assert layer(torch.randn(2, 3, 48)).shape == (2, 3, 24)
    assert "recipe=wlib" in repr(layer)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(6)))
    recipe = dataclasses.replace(RECIPES["quartet2"], skip=("1",), skip_last=2)
    names = wlib.nn.replace_linear(model, FP4Linear, skip=("0",), recipe=recipe)
    assert names == ["2", "3"]
    assert isinstance(model[3], FP4Linear)
    assert type(model[1]) is type(model[4]) is nn.Linear
    assert wlib.nn.seed_fp4(model, 1) == 2
    assert [int(model[i].fp4_state[0]) for i in (2, 3)] == [1 << 20, (1 << 20) + 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_dtypes(dtype: torch.dtype) -> None:
    layer, x = FP4Linear(64, 32), torch.randn(8, 64, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    half = layer.to(dtype)
    x16 = torch.randn(8, 64, dtype=dtype, requires_grad=True)
    half(x16).sum().backward()
    assert x16.grad.dtype == half.weight.grad.dtype == dtype  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_bias(dtype: torch.dtype) -> None:
    layer, dy = FP4Linear(64, 32, dtype=dtype), torch.randn(100, 32, dtype=dtype)
    layer(torch.randn(100, 64, dtype=dtype)).backward(dy)
    assert layer.bias.grad is not None
    assert layer.bias.grad.dtype == dtype
    expected = dy.double().sum(dim=0)
    torch.testing.assert_close(layer.bias.grad.double(), expected, rtol=2e-2, atol=1e-4)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    layer = FP4Linear(64, 32)
    layer.weight.requires_grad_(False)
    x = torch.randn(8, 64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    step = layer.fp4_state.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer.fp4_state, step)
    layer(x)
    assert layer.fp4_state.tolist() == [int(step[0]), int(step[1]) + 1]


def test_checkpointing_draws_the_next_step() -> None:
    layer, x = FP4Linear(64, 32), torch.randn(128, 64)
    other = copy.deepcopy(layer)
    y = checkpoint(layer, x, use_reentrant=False)
    y.sum().backward()
    assert layer.fp4_state[1] == 2
    other.fp4_state[1] = 1
    expected = other(x)
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(layer.weight.grad, other.weight.grad)


@pytest.mark.parametrize("name", ["wlib", "quartet2"])
def test_compile_gives_the_same_bits(name: str) -> None:
    layer = FP4Linear(64, 96, recipe=name)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True)
    for m in (130, 33, 70):
        x, dy = torch.randn(m, 64), torch.randn(m, 96)
        found = []
        for module in (layer, compiled):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            y = module(leaf)
            y.backward(dy)
            found.append((y, leaf.grad, module.weight.grad, module.fp4_state))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


def _on_ranks(run: Callable[[int], None], tmp_path: Path) -> None:
    spawn(_rank, (run, str(tmp_path / "store")), nprocs=2)


def _rank(rank: int, run: Callable[[int], None], store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        run(rank)
    finally:
        torch.distributed.destroy_process_group()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(FP4Linear(64, 64, seed=1), nn.ReLU(), FP4Linear(64, 32, seed=2))


def _steps(model: nn.Module, rank: int) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(128, 64, generator=generator)).square().mean().backward()
        optimiser.step()


def _alone() -> nn.Sequential:
    """The same three steps on one process: gradients of the ranks' batches are averaged."""
    model = _model()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    for _ in range(3):
        optimiser.zero_grad()
        steps = [layer.fp4_state.clone() for layer in model if isinstance(layer, FP4Linear)]
        for generator in generators:
            layers = [layer for layer in model if isinstance(layer, FP4Linear)]
            for layer, step in zip(layers, steps, strict=True):
                layer.fp4_state.copy_(step)  # both ranks draw the same
            (model(torch.randn(128, 64, generator=generator)).square().mean() / 2).backward()
        optimiser.step()
    return model


def _ddp(rank: int) -> None:
    model = nn.parallel.DistributedDataParallel(_model())
    _steps(model, rank)
    _compare(dict(model.module.named_parameters()), model.module)


def _fsdp(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = _model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _steps(model, rank)
    full = {name: p.full_tensor() for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    _compare(full, model)


def _compare(parameters: dict[str, Tensor], model: nn.Module) -> None:
    alone = _alone()
    for name, expected in alone.named_parameters():
        torch.testing.assert_close(parameters[name], expected.detach(), rtol=1e-5, atol=1e-6)
    for name, state in alone.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], state)


@pytest.mark.parametrize("run", [_ddp, _fsdp])
def test_two_ranks_draw_the_same(run: Callable[[int], None], tmp_path: Path) -> None:
    _on_ranks(run, tmp_path)


def test_example(tmp_path: Path) -> None:
    """Every recipe learns like BF16 does, from the same first loss."""
    llama = example("train_small_llama")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = llama.run_all(llama.PRESETS["test"], [*RECIPES], 1, quiet=True)
    torch.set_num_threads(threads)
    base = runs[0]
    assert base.arm == "bf16"
    assert base.training < base.curve[0] - 1.5
    for run in runs[1:]:
        assert run.curve != base.curve
        assert abs(run.curve[0] - base.curve[0]) < 0.02
        assert abs(run.validation - base.validation) < 0.25
    llama.plot(runs, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert llama.table(runs).row_count == len(runs)
