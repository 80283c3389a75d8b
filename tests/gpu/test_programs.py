"""Every op of every family as a program uses it: repeats, graphs, threads, far rows."""

import contextlib
import threading
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from op_calls import (
    VIEWS,
    Sample,
    as_bytes,
    bits,
    bits_far_apart,
    named_arguments,
    one_per_op,
    overload,
    tensors,
    to_device,
    views,
    written,
)
from op_samples import samples

REPEATS = 20
THREADS, CALLS = 8, 100
NAMES = [f"{i}-{sample[0]}" for i, sample in enumerate(samples())]


def moved(sample: Sample) -> Sample:
    """The same call on the GPU; a kernel that is there for the CPU only is no failure."""
    name, *given = sample
    arguments, options = pytree.tree_map(lambda value: to_device(value, "cuda"), given)
    try:
        bits((name, arguments, options))
    except NotImplementedError as error:
        pytest.skip(str(error))
    return name, arguments, options


@pytest.mark.parametrize("sample", samples(), ids=NAMES)
def test_repeats_give_the_same_bits(sample: Sample) -> None:
    sample = moved(sample)
    first = bits(sample)
    for _ in range(REPEATS - 1):
        torch.empty(1 << 20, device="cuda").fill_(torch.nan)  # what a forgotten element would show
        assert bits(sample) == first


@pytest.mark.parametrize("sample", samples(), ids=NAMES)
def test_a_graph_replays(sample: Sample) -> None:
    """Twice, from what the op writes as it was before."""
    sample = moved(sample)
    name, expected = sample[0], bits(sample)
    before, held = named_arguments(sample), named_arguments(sample)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = overload(name)(**held)
    for _ in range(2):
        for key in written(name):
            restore(held[key], before[key])
        graph.replay()
        found = tensors([result, [held[key] for key in written(name)]])
        assert [as_bytes(t) for t in found] == expected


def restore(targets: Any, sources: Any) -> None:
    for target, source in zip(tensors(targets), tensors(sources), strict=True):
        target.copy_(source)


def test_eight_threads() -> None:
    """A hundred calls of every op by each, on a stream of its own."""
    calls = on_gpu(one_per_op())
    expected = [bits(sample) for sample in calls]
    wrong: list[str] = []
    torch.cuda.synchronize()

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for sample, right in zip(calls, expected, strict=True):
                if any(bits(sample) != right for _ in range(CALLS)):
                    wrong.append(sample[0])

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def on_gpu(calls: list[Sample]) -> list[Sample]:
    """Those that have a kernel for the GPU, moved there."""
    found = []
    for sample in calls:
        with contextlib.suppress(pytest.skip.Exception):
            found.append(moved(sample))
    return found


@pytest.mark.parametrize(("sample", "key", "i"), views(), ids=sorted(VIEWS))
def test_rows_beyond_2_to_31_elements(sample: Sample, key: str, i: int) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of device memory")
    sample = moved(sample)
    assert bits_far_apart(sample, key, i) == bits(sample)
    del sample
    torch.cuda.empty_cache()
