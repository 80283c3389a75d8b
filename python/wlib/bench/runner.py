"""Runs the points of a suite and yields their rows."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from . import accuracy
from .arms import Arm, Tensors
from .environment import Environment, clocks
from .rows import COPY, Row
from .suites import Shape, Suite
from .timing import Call, Timing, measure, rotated_copies

SEED = 2505
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 256  # of the output that is compared with float64
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 25}  # the source of the copy that is the roofline


@dataclass(frozen=True)
class Plan:
    """A run: these shapes at these M, every arm, `budget_s` seconds of measuring per point."""

    op: str
    arms: tuple[type[Arm], ...]
    suite: Suite
    m: tuple[int, ...]
    device: torch.device
    budget_s: float
    environment: Environment


@dataclass(frozen=True)
class Point:
    """The rows of one (shape, M), and what the arms said that raised."""

    shape: Shape
    m: int
    rows: list[Row]
    failures: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """An arm ready to be timed: one call per rotated copy of its weight."""

    arm: str
    version: str
    dtype: str
    bytes: int
    flops: int
    calls: list[Call]
    accuracy: accuracy.Accuracy


def measure_plan(plan: Plan) -> Iterator[Point]:
    """Measure every point of `plan`, shape by shape."""
    copy = _copy_candidate(plan.device)
    for shape in plan.suite.shapes:
        problem = _ShapeProblem(plan, shape)
        for m in plan.m:
            candidates, failures = problem.candidates(m)
            rows = _time(plan, shape, m, [copy, *candidates])
            yield Point(shape, m, rows, problem.failures | failures)


class _ShapeProblem:
    """One weight [N, K], stored by every arm that can, and rotated copies of it."""

    def __init__(self, plan: Plan, shape: Shape) -> None:
        self._generator = torch.Generator(plan.device).manual_seed(SEED)
        self._weight = self._normal(shape.n, shape.k) / math.sqrt(shape.k)
        self._arms: list[tuple[Arm, list[Tensors]]] = []
        self.failures: dict[str, str] = {}
        for arm_type in plan.arms:
            if arm_type.unavailable(plan.device):
                continue
            try:
                arm = arm_type(self._weight, plan.suite.group_size)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                self.failures[arm_type.name] = str(error)
                continue
            self._arms.append((arm, _rotate(arm.stored, plan.device)))

    def candidates(self, m: int) -> tuple[list[Candidate], dict[str, str]]:
        """Return the arms that solve the problem for M = `m`, and what the others said."""
        x = self._normal(m, self._weight.shape[1])
        ready, failures = [], {}
        for arm, copies in self._arms:
            try:
                ready.append(self._candidate(arm, copies, x))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                failures[arm.name] = str(error)
        return ready, failures

    def _candidate(self, arm: Arm, copies: list[Tensors], x: Tensor) -> Candidate:
        (m, k), n = x.shape, len(self._weight)
        rows, columns = _spread(m, SAMPLE_ROWS, x), _spread(n, SAMPLE_COLUMNS, x)
        unquantized = x[rows].double() @ self._weight[columns].double().t()
        inputs = arm.inputs(x)
        y = arm.call(arm.stored, inputs)
        errors = accuracy.compare(
            y[rows][:, columns], arm.reference(inputs, rows, columns), unquantized
        )
        moved = sum(t.numel() * t.element_size() for t in (*arm.stored, *inputs, y))
        calls = [_bind(arm, stored, inputs) for stored in copies]
        return Candidate(arm.name, arm.version, arm.dtype, moved, 2 * m * n * k, calls, errors)

    def _normal(self, rows: int, columns: int) -> Tensor:
        device = self._generator.device
        values = torch.randn(rows, columns, generator=self._generator, device=device)
        return values.to(torch.bfloat16)


def _time(plan: Plan, shape: Shape, m: int, candidates: list[Candidate]) -> list[Row]:
    calls = {candidate.arm: candidate.calls for candidate in candidates}
    timings = measure(calls, plan.device, plan.budget_s)
    sm_clock_mhz, power_w = clocks(plan.device)  # at once, while the clocks are still up
    copy_rate = candidates[0].bytes / timings[COPY].median_us

    def row(candidate: Candidate, timing: Timing) -> Row:
        rate = candidate.bytes / timing.median_us
        return Row(
            op=plan.op,
            shape=shape.name,
            n=shape.n,
            k=shape.k,
            m=m,
            group_size=plan.suite.group_size,
            arm=candidate.arm,
            version=candidate.version,
            dtype=candidate.dtype,
            weight_copies=len(candidate.calls),
            bytes=candidate.bytes,
            flops=candidate.flops,
            gb_per_s=rate * 1e-3,
            copy_fraction=rate / copy_rate,
            tflops=candidate.flops / timing.median_us * 1e-6,
            speedup={
                other: timings[other].median_us / timing.median_us
                for other in timings
                if other not in (candidate.arm, COPY)
            },
            seed=SEED,
            sm_clock_mhz=sm_clock_mhz,
            power_w=power_w,
            environment=plan.environment,
            **asdict(timing),
            **asdict(candidate.accuracy),
        )

    return [row(candidate, timings[candidate.arm]) for candidate in candidates]


def _copy_candidate(device: torch.device) -> Candidate:
    """Return the roofline: a copy much larger than any cache, counting bytes read and written."""
    size = COPY_BYTES[device.type]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: list[Call] = [lambda: target.copy_(source)]
    errors = accuracy.Accuracy()
    return Candidate(COPY, torch.__version__, "uint8", 2 * size, 0, calls, errors)


def _rotate(stored: Tensors, device: torch.device) -> list[Tensors]:
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    copies = rotated_copies(weight_bytes, device)
    return [tuple(tensor.clone() for tensor in stored) for _ in range(copies)]


def _bind(arm: Arm, stored: Tensors, inputs: Tensors) -> Call:
    return lambda: arm.call(stored, inputs)


def _spread(size: int, count: int, like: Tensor) -> Tensor:
    """Return at most `count` indices spread over range(size), first and last included."""
    return torch.linspace(0, size - 1, min(size, count), device=like.device).round().long()
