"""Low rank plus sparse layers on the GPU, against float64 and against the CPU."""

import pytest
import torch
from torch import Tensor

import wlib
from wlib.nn import SparseLowRankLinear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (63, 200), (257, 128), (300, 1000), (1024, 1024))
OPS = torch.ops.wlib


def draw(*shape: int, exact: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if exact:
        return torch.randint(-1, 2, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=("exact", "random"))
def test_products(shape: tuple[int, int], density: float, dtype: torch.dtype, exact: bool) -> None:
    """The bits of the CPU, which adds up like the kernels of float32 products; random 16-bit ones
    within the bound of float32 sums, truncated ones, and one rounding."""
    support = wlib.sparse_support(*shape, density)
    values = draw(support.count, exact=exact)
    for m in (0, 1, 127, 300):
        for transposed in (False, True):
            ins, outs = shape if transposed else shape[::-1]
            x = draw(m, ins + 8, exact=exact, dtype=dtype)[:, :ins]
            base, bias = (draw(*s, exact=exact, dtype=dtype) for s in ((m, outs), (outs,)))
            tensors = (x, values, support.positions, support.offsets)
            ends = (*shape, transposed)
            cpu = OPS.tile_sparse_matmul(*tensors, *ends, base, bias)
            on_gpu = [t.cuda() for t in (*tensors, base, bias)]
            y = OPS.tile_sparse_matmul(*on_gpu[:4], *ends, *on_gpu[4:])
            if exact or dtype == torch.float32:
                assert torch.equal(y.cpu(), cpu)
                continue
            s = support.dense(values.to(dtype)).double()
            s = s if transposed else s.T
            extras = base.double(), bias.double()
            true = x.double() @ s + sum(extras)
            size = x.double().abs() @ s.abs() + sum(t.abs() for t in extras)
            error = (y.cpu().double() - true).abs()
            assert (
                error <= 0.51 * torch.finfo(dtype).eps * true.abs() + (ins + 2) * 2.0**-23 * size
            ).all()
            again = OPS.tile_sparse_matmul(*on_gpu[:4], *ends, *on_gpu[4:])
            assert torch.equal(y, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 300, 2048, 5000])
def test_samples(m: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    support = wlib.sparse_support(*shape, 0.05)
    places = support.positions, support.offsets
    on_gpu = [t.cuda() for t in places]
    for exact in (True, False):
        dy, x = (draw(m, n, exact=exact, dtype=dtype) for n in shape)
        got = OPS.tile_sampled_matmul(dy.cuda(), x.cuda(), *on_gpu, torch.float32).cpu()
        true = support.gather(dy.double().T @ x.double())
        size = support.gather(dy.double().abs().T @ x.double().abs())
        roundoff = 2.0**-24 if dtype == torch.float32 else 2.0**-23  # tensor cores may truncate
        assert ((got - true).abs() <= (0 if exact else m * roundoff) * size).all()
        again = OPS.tile_sampled_matmul(dy.cuda(), x.cuda(), *on_gpu, torch.float32).cpu()
        assert torch.equal(got, again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_and_gradients(dtype: torch.dtype) -> None:
    """Within the roundings of the chain, each to the layer's type, of the CPU's float64 layer."""
    module = SparseLowRankLinear(512, 384, 16, 0.05, alpha=16, dtype=dtype, device="cuda")
    torch.nn.init.normal_(module.b)
    true = SparseLowRankLinear(512, 384, 16, 0.05, alpha=16, dtype=torch.float64)
    true.load_state_dict(module.state_dict())
    x = draw(600, 512, exact=False, dtype=dtype)
    results = []
    for layer, own in ((module, x.cuda()), (true, x.double())):
        leaf = own.requires_grad_()
        y = layer(leaf)
        y.backward(torch.ones_like(y))
        grads = [leaf.grad, *(p.grad for p in layer.parameters())]
        results.append([t.double().cpu() for t in (y, *grads)])
    for got, exact in zip(*results, strict=True):
        assert (got - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm() + 1e-5


def test_graph_and_no_synchronisation() -> None:
    module = SparseLowRankLinear(512, 384, 16, 0.05, dtype=torch.bfloat16, device="cuda")
    torch.nn.init.normal_(module.b)
    x = torch.randn(300, 512, dtype=torch.bfloat16, device="cuda")
    expected = module(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = module(x)
    for scale in (2.0, 0.5):
        x.mul_(scale)
        graph.replay()
        with torch.no_grad():
            assert torch.equal(y, module(x))
    assert torch.equal(y, expected)
