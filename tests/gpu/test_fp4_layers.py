"""FP4Linear on the GPU: every recipe against the CPU, and training steps replayed by a graph."""

import copy

import pytest
import torch
from torch import Tensor

import wlib
from wlib.fp4_recipe import RECIPES
from wlib.nn import FP4Linear

DEVICE = "cuda"
# Sums are made in another order and codes are the same, so results differ by float32's rounding
# (FP8 sums keep about 13 bits below their largest addend) and that of the output.
TOLERANCE = 2e-3


def step(layer: FP4Linear, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dX and the layer's gradients of one step."""
    x = x.detach().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)
    return [y.detach(), *grads]


@pytest.mark.parametrize("shape", [(64, 96, 128), (37, 50, 70)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_those_of_the_cpu(recipe: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    torch.manual_seed(m)
    here = FP4Linear(k, n, recipe=recipe)
    wlib.nn.seed_fp4(here, 3)
    there = copy.deepcopy(here).to(DEVICE)
    x, dy = torch.randn(m, k), torch.randn(m, n)
    for _ in range(2):  # the second step draws other signs
        results = step(there, x.to(DEVICE), dy.to(DEVICE))
        for got, expected in zip(results, step(here, x, dy), strict=True):
            assert (got.cpu() - expected).norm() <= TOLERANCE * expected.norm()


def test_a_graph_draws_fresh_signs_in_each_replay() -> None:
    torch.manual_seed(0)
    layer = FP4Linear(256, 128, recipe="wlib").to(DEVICE)
    wlib.nn.seed_fp4(layer, 3)
    x, dy = torch.randn(64, 256, device=DEVICE), torch.randn(64, 128, device=DEVICE)
    eager = copy.deepcopy(layer)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(copy.deepcopy(layer), x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(layer, x, dy)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append([t.clone() for t in results])
        for got, expected in zip(replays[-1], step(eager, x, dy), strict=True):
            assert torch.equal(got, expected)
    assert not torch.equal(replays[0][2], replays[1][2])  # dW
