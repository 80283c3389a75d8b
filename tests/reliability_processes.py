"""What tests/test_reliability.py runs in processes of its own; each prints one line of JSON."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

import wlib
from op_calls import digest, named_arguments, one_per_op, overload
from op_samples import samples

THREADS = 8
ROUNDS, MANY_ROUNDS = 10, 100  # MANY_ROUNDS for one sample of every op
# Several matmuls of torch, or many small ones, in a call: 10 milliseconds each.
SLOW = ("fp4_linear.default", "fp4_linear_backward.default", "tile_sampled_matmul.default")
LEAK_CALLS = 1000


def digests() -> list[str]:
    """Of every sample, in turn."""
    return [digest(sample) for sample in samples()]


def threads() -> list[list[str]]:
    """All digests of every sample in its rounds, by threads that begin it at the same time."""
    calls, start = samples(), threading.Barrier(THREADS)
    rounds, names = [], set(SLOW)
    for name, *_ in calls:
        rounds.append(ROUNDS if name in names else MANY_ROUNDS)
        names.add(name)
    found: list[list[str]] = [[] for _ in range(THREADS)]

    def work(index: int) -> None:
        for sample, count in zip(calls, rounds, strict=True):
            start.wait()
            found[index].append("|".join({digest(sample) for _ in range(count)}))

    run = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    return found


def forked(single: bool) -> list[str] | None:
    """The digests of a forked child, with one thread if `single`; None if it died or hung."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        if single:
            torch.set_num_threads(1)
        wlib.fp8_quantize(torch.ones(1000, 1024))  # enough for all threads
        sender.send(digests())

    process = context.Process(target=child)
    process.start()
    found = receiver.recv() if receiver.poll(60) else None
    process.kill()
    process.join()
    return found


def programs() -> dict[str, Any]:
    """A fork of a process that has run nothing, one after its OpenMP threads have run, and threads.

    In this order: MKL may hang in the child of a process whose own threads have run torch.mm.
    """
    before = forked(single=False)
    digests()
    return {"before": before, "after": forked(single=True), "threads": threads()}


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


def memory_in_use() -> int:
    """Bytes that malloc has handed out and not got back."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def resident() -> int:
    """Bytes of memory that the process occupies."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def growth(run: Callable[[], Any]) -> int:
    """By how many bytes the memory in use grows in LEAK_CALLS calls."""
    for _ in range(100):
        run()
    before = memory_in_use()
    for _ in range(LEAK_CALLS):
        run()
    return memory_in_use() - before


def leaks() -> dict[str, Any]:
    """Growth per op, of a call that leaks a byte, and of the process in a second round over all."""
    torch.set_num_threads(1)
    calls = one_per_op()
    grown: dict[str, int] = {}
    before = 0
    for sample in [*calls, *calls]:
        if sample[0] in grown and not before:
            before = resident()
        given, op = named_arguments(sample), overload(sample[0])
        grown[sample[0]] = growth(lambda op=op, given=given: op(**given))
    after = resident()
    malloc = ctypes.CDLL(None).malloc
    leak = growth(lambda: malloc(ctypes.c_size_t(1)))
    return {"grown": grown, "resident": after - before, "a leak": leak}


if __name__ == "__main__":
    tasks: dict[str, Callable[[], Any]] = {"programs": programs, "leaks": leaks}
    print(json.dumps(tasks[sys.argv[1]]()))
