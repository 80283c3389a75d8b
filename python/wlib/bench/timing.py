"""Interleaved timing of arms: CUDA graphs and events on a GPU, `perf_counter` on the CPU."""

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

LAP_US = 1000.0  # a timed lap lasts about this long, so that its start costs little
MIN_ROUNDS, MAX_ROUNDS = 10, 1000


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call over `rounds` laps.

    The median with its 95 % interval, 10th and 90th percentile.
    """

    median_us: float
    low_us: float
    high_us: float
    p10_us: float
    p90_us: float
    rounds: int


def summarize(samples_us: Sequence[float]) -> Timing:
    """Return what `Timing` says of `samples_us` (at least two).

    The interval needs no distribution: with n samples, the number below the true median is
    binomial(n, 1/2), so the samples of rank n/2 -+ 0.98 sqrt(n) enclose it with 95 %.
    """
    ordered, n = sorted(samples_us), len(samples_us)
    deciles = statistics.quantiles(ordered, n=10, method="inclusive")
    low = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1)
    high = min(n - 1, math.ceil(n / 2 + 0.98 * math.sqrt(n)))
    median = statistics.median(ordered)
    return Timing(median, ordered[low], ordered[high], deciles[0], deciles[8], n)


class Lap(ABC):
    """All calls of one arm, one after the other: the unit that is timed."""

    calls: int

    @abstractmethod
    def run(self) -> None:
        """Run the lap and record its time."""

    @abstractmethod
    def samples_us(self) -> list[float]:
        """Return the microseconds per call of every lap so far."""


class CpuLap(Lap):
    """A lap on the CPU, timed by the host's clock."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = _repeat_to_lap(calls, _time_cpu)
        self.calls = len(self._calls)
        self._samples: list[float] = []

    def run(self) -> None:
        """Run the lap and record its time."""
        self._samples.append(_time_cpu(self._calls) / self.calls)

    def samples_us(self) -> list[float]:
        """Return the microseconds per call of every lap so far."""
        return self._samples


class CudaLap(Lap):
    """A lap captured in one CUDA graph, timed by events round its replay.

    The graph holds one call per rotated weight copy, so each call finds its weights outside L2.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        calls = _repeat_to_lap(calls, _time_cuda)
        self.calls = len(calls)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for call in calls:
                call()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def run(self) -> None:
        """Enqueue one replay between two events; the host does not wait."""
        self._events.append((_event(), _event()))
        start, end = self._events[-1]
        start.record()
        self._graph.replay()
        end.record()

    def samples_us(self) -> list[float]:
        """Wait for the device and return the microseconds per call of every lap so far."""
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 / self.calls for start, end in self._events]


def make_lap(calls: Sequence[Call], device: torch.device) -> Lap:
    """Return the lap of one arm on `device`: `calls`, one per rotated copy of its weights."""
    return CudaLap(calls) if device.type == "cuda" else CpuLap(calls)


def measure(laps: Mapping[str, Lap], budget_s: float) -> dict[str, Timing]:
    """Time one call of each arm; the arms take turns, so that all see the same clocks and heat.

    Args:
        laps: the lap of every arm.
        budget_s: seconds to measure for, all arms together; at least `MIN_ROUNDS` rounds are run.

    Returns:
        The timing of every arm, per call.
    """
    order = list(laps.values())
    for lap in order:  # the warm-up round tells how long a round is
        lap.run()
    round_s = sum(lap.samples_us()[0] * lap.calls for lap in order) * 1e-6
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, math.ceil(budget_s / round_s)))
    for turn in range(rounds):
        for index in range(len(order)):  # another arm goes first each round
            order[(turn + index) % len(order)].run()
    return {name: summarize(lap.samples_us()[1:]) for name, lap in laps.items()}


def rotated_copies(weight_bytes: int, device: torch.device) -> int:
    """Return how many copies of a weight make a set of more than four times the L2 cache.

    On the CPU the figures are of warm caches: two copies are rotated.
    """
    if device.type != "cuda":
        return 2
    l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(2, 4 * l2_bytes // weight_bytes + 1)


def _repeat_to_lap(calls: Sequence[Call], clock: Callable[[Sequence[Call]], float]) -> list[Call]:
    """Return `calls` repeated until a lap lasts `LAP_US`; also warms up lazy initialisation."""
    clock(calls)
    return list(calls) * max(1, math.ceil(LAP_US / clock(calls)))


def _time_cpu(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) * 1e6


def _time_cuda(calls: Sequence[Call]) -> float:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # graphs are captured on a side stream: warm up on one too
        start, end = _event(), _event()
        start.record()
        for call in calls:
            call()
        end.record()
    torch.cuda.current_stream().wait_stream(side)
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
