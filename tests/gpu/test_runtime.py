"""How the ops behave in a program: graphs, determinism, threads, compilation, no hidden waits."""

import threading
import time

import pytest
import torch
from gpu_problems import exact_problem, random_problem
from torch import Tensor

import wlib


def linear(x: Tensor, data: Tensor, n: int, group_size: int) -> Tensor:
    """What a layer runs: quantise, multiply."""
    codes, scale = wlib.fp8_quantize(x)
    return torch.ops.wlib.int4fp8_gemm(codes, data, scale, n=n, group_size=group_size)


@pytest.mark.parametrize("m", [1, 16, 64, 100])
def test_graph_replays_with_changed_inputs(m: int) -> None:
    first, second = (exact_problem(m, 384, 1024, 128, seed=seed).to("cuda") for seed in (3, 4))
    packed = first.weight.pack()
    x, x_scale = first.x.clone(), first.x_scale.clone()
    out = torch.empty(m, 384, dtype=torch.bfloat16, device="cuda")
    wlib.int4fp8_gemm(x, packed, x_scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = wlib.int4fp8_gemm(x, packed, x_scale)
        wlib.int4fp8_gemm(x, packed, x_scale, out=out)
    for problem in (second, first, second):
        x.view(torch.uint8).copy_(problem.x.view(torch.uint8))
        x_scale.copy_(problem.x_scale)
        packed.data.copy_(problem.weight.pack().data)
        out.fill_(torch.nan)
        graph.replay()
        expected = problem.expected()
        assert torch.equal(y, expected)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("m", [1, 16, 64, 200])
@pytest.mark.parametrize(("n", "k"), [(64, 16384), (4096, 4096)])
def test_twenty_runs_give_the_same_bits(m: int, n: int, k: int) -> None:
    problem = random_problem(m, n, k, 128)
    packed = problem.weight.pack()
    first = problem.solve(packed)
    for _ in range(19):
        torch.empty(m, n, device="cuda").fill_(torch.nan)  # what a forgotten element would show
        assert torch.equal(problem.solve(packed).view(torch.int32), first.view(torch.int32))


@pytest.mark.parametrize(("fewest", "tile"), [(1, 8), (9, 16), (17, 32), (33, 64)])
@pytest.mark.parametrize(("n", "k"), [(64, 16384), (4096, 4096)])
def test_a_token_does_not_see_its_batch(fewest: int, tile: int, n: int, k: int) -> None:
    """Within a token tile, the bits of a row do not depend on how many rows there are."""
    problem = random_problem(tile, n, k, 128)
    packed = problem.weight.pack()
    full = problem.solve(packed)
    for m in range(fewest, tile):
        assert torch.equal(problem.first(m).solve(packed), full[:m]), m


def test_eight_threads() -> None:
    """Each with a stream, a size and a weight of its own."""
    problems = [exact_problem(m, 65 * m, 512, 64, seed=m).to("cuda") for m in range(1, 9)]
    expected = [problem.expected() for problem in problems]
    wrong: list[int] = []
    torch.cuda.synchronize()

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            packed = problems[index].weight.pack()
            for _ in range(100):
                if not torch.equal(problems[index].solve(packed), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("m", [1, 64, 200])
def test_no_hidden_wait(m: int) -> None:
    """While the device is held, calls return at once and torch sees no synchronising call."""
    problem = exact_problem(m, 384, 1024, 128).to("cuda")
    packed = problem.weight.pack()
    x = torch.randn(m, 1024, device="cuda")
    problem.solve(packed), wlib.fp8_quantize(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # about half a second
        start = time.perf_counter()
        y = problem.solve(packed)
        wlib.fp8_quantize(x)
        waited = time.perf_counter() - start
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query(), "the device was not held long enough to tell"
    assert waited < 0.1
    assert torch.equal(y, problem.expected())


def test_a_thousand_calls_leak_nothing() -> None:
    problem = exact_problem(16, 384, 1024, 128).to("cuda")
    packed = problem.weight.pack()
    problem.solve(packed)
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        problem.solve(packed)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.mem_get_info()[0] > free - 2**21  # the driver hands out 2 MiB at a time


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode: str) -> None:
    problem = random_problem(64, 384, 1024, 128)
    data = problem.weight.pack().data
    compiled = torch.compile(linear, fullgraph=True, mode=mode)
    draw = torch.Generator("cuda").manual_seed(5)
    for m in (3, 16, 33):
        x = torch.randn(m, 1024, device="cuda", dtype=torch.bfloat16, generator=draw)
        torch._dynamo.mark_dynamic(x, 0)
        for _ in range(3):  # with graphs the third call is a replay
            assert torch.equal(compiled(x, data, 384, 128), linear(x, data, 384, 128))
