"""The grouped GEMM on hardware, and launches that start before the one before them has ended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from gpu_problems import exact_problem, random_problem
from torch import Tensor

import wlib
from wlib.nn import Int4Fp8Experts
from wlib.reference import exact
from wlib.reference import int4fp8 as reference

COUNTS = (  # by the row of the dispatch table that they take
    (0, 1, 2, 0),
    (0, 1, 7, 8, 9, 0),
    (3, 29, 0, 16),
    (0, 1, 63, 64, 65, 0),
    (0, 0, 200, 0),
    (127, 128, 129, 0, 300),
    (*(i % 3 for i in range(70)), 40),
)


@dataclass(frozen=True)
class Grouped:
    """Operands on the GPU, and the float64 result in bfloat16."""

    x: Tensor
    x_scale: Tensor
    weights: wlib.PackedInt4Experts
    offsets: Tensor
    bias: Tensor
    expected: Tensor

    @classmethod
    def draw(
        cls, counts: Sequence[int], n: int, k: int, group_size: int, zero_point: bool, seed: int = 0
    ) -> "Grouped":
        draw = torch.Generator().manual_seed(seed)
        options = {"zero_point": zero_point, "generator": draw}
        problems = [exact.problem(m, n, k, group_size, **options) for m in counts]
        x, x_scale = (torch.cat([one[i] for one in problems]) for i in (0, 1))
        weights = [one.weight for one in problems]
        bias = torch.stack([one.bias for one in problems])
        y = reference.int4fp8_gemm_grouped(x, weights, x_scale, counts, bias).y
        offsets = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0)
        offsets = offsets.int() if sum(counts) % 2 else offsets
        packed = wlib.pack_experts(weights).to("cuda")
        moved = [t.cuda() for t in (offsets, bias, y.bfloat16())]
        return cls(x.cuda(), x_scale.cuda(), packed, *moved)

    def solve(self, offsets: Tensor | None = None) -> Tensor:
        offsets = self.offsets if offsets is None else offsets
        return wlib.int4fp8_gemm_grouped(self.x, self.weights, self.x_scale, offsets, self.bias)


@pytest.mark.parametrize("zero_point", [False, True], ids=("symmetric", "zero"))
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(65, 320, 64), (384, 1536, 32), (1024, 1024, 128)]
)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_exact(counts: tuple[int, ...], n: int, k: int, group_size: int, zero_point: bool) -> None:
    problem = Grouped.draw(counts, n, k, group_size, zero_point)
    assert torch.equal(problem.solve(), problem.expected)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_row_does_not_depend_on_where_the_others_go(counts: tuple[int, ...]) -> None:
    problem = Grouped.draw(counts, 384, 1024, 128, False)
    tokens, experts = sum(counts), len(counts)
    last = next(e for e in reversed(range(experts)) if counts[e])
    alone = torch.zeros(experts + 1, dtype=torch.int64, device="cuda")
    alone[last:] = tokens - 1
    alone[last + 1 :] = tokens
    assert torch.equal(problem.solve(alone)[-1], problem.solve()[-1])


@pytest.mark.parametrize("counts", COUNTS[:6:2], ids=str)
def test_graph_replays_with_another_routing(counts: tuple[int, ...]) -> None:
    first, second = (
        Grouped.draw(routing, 384, 1024, 128, False, seed=4) for routing in (counts, counts[::-1])
    )
    offsets, x, x_scale = first.offsets.clone(), first.x.clone(), first.x_scale.clone()
    weights, bias = replace(first.weights, data=first.weights.data.clone()), first.bias.clone()
    first.solve()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = wlib.int4fp8_gemm_grouped(x, weights, x_scale, offsets, bias)
    for problem in (second, first, second):
        offsets.copy_(problem.offsets)
        x.view(torch.uint8).copy_(problem.x.view(torch.uint8))
        x_scale.copy_(problem.x_scale)
        weights.data.copy_(problem.weights.data)
        bias.copy_(problem.bias)
        graph.replay()
        assert torch.equal(y, problem.expected)


@pytest.mark.parametrize("offsets", [(9, -3, 2, 900), (0, 0, 0, 0), (-(2**40), 3, 3, 2**40)])
def test_wrong_offsets_lead_nowhere(offsets: tuple[int, ...]) -> None:
    problem = Grouped.draw((5, 3, 9), 384, 1024, 128, False)
    problem.solve(torch.tensor(offsets, device="cuda"))
    torch.cuda.synchronize()
    assert torch.equal(problem.solve(), problem.expected)


def test_no_hidden_wait() -> None:
    problem = Grouped.draw(COUNTS[3], 384, 1024, 128, True)
    problem.solve()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = problem.solve()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(y, problem.expected)


@pytest.mark.parametrize("m", [1, 40, 700])
def test_module_gives_what_the_cpu_gives(m: int) -> None:
    torch.manual_seed(m)
    shapes = ((8, 192, 256), (8, 192, 256), (8, 256, 192))
    module = Int4Fp8Experts.quantize(*(torch.randn(*s) / 16 for s in shapes), group_size=64)
    x = torch.randn(m, 256)
    shares, ids = torch.rand(m, 8).topk(2)
    expected = module(x, ids, shares)
    y = module.cuda()(x.cuda(), ids.cuda(), shares.cuda()).cpu()
    assert (y - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.parametrize("m", [1, 16, 33, 64])
def test_a_weight_fetched_early_is_the_one_written_before_the_quantiser(m: int) -> None:
    """Update, quantise, multiply, a hundred times in one stream without a wait in between."""
    problems = [random_problem(m, 4096, 4096, 128, seed=seed) for seed in (1, 2)]
    stored = [problem.weight.pack() for problem in problems]
    packed = problems[0].weight.pack()
    x = torch.randn(m, 4096, device="cuda")
    codes, scale = wlib.fp8_quantize(x)
    expected = [wlib.int4fp8_gemm(codes, one, scale) for one in stored]
    torch.cuda.synchronize()
    results = []
    for i in range(100):
        packed.data.copy_(stored[i % 2].data)
        codes, scale = wlib.fp8_quantize(x)
        results.append(wlib.int4fp8_gemm(codes, packed, scale, prefetch_weight=True))
    for i, y in enumerate(results):
        assert torch.equal(y, expected[i % 2]), i


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_chain_of_early_starts(prefetch: bool) -> None:
    """Each launch reads what the one before it wrote, and writes over what that one read."""
    problem = exact_problem(8, 1024, 1024, 128).to("cuda")
    packed = problem.weight.pack()
    expected = problem.expected()
    buffer = torch.empty(8, 1024, device="cuda", dtype=torch.bfloat16)
    for _ in range(200):
        wlib.int4fp8_gemm(problem.x, packed, problem.x_scale, out=buffer, prefetch_weight=prefetch)
        codes, scale = wlib.fp8_quantize(buffer)
        wlib.int4fp8_gemm(codes, packed, scale, out=buffer, prefetch_weight=prefetch)
    wlib.int4fp8_gemm(problem.x, packed, problem.x_scale, out=buffer, prefetch_weight=prefetch)
    assert torch.equal(buffer, expected)
    again, _ = wlib.fp8_quantize(expected)
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
