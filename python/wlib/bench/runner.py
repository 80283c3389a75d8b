"""Runs the problems of an op and yields their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .accuracy import Accuracy
from .environment import Environment, clocks
from .op import Arm, Op, Tensors, Work, size_of
from .rows import COPY, Row
from .suites import Problem
from .timing import Call, Lap, Timing, make_lap, measure, rotated_copies

SEED = 2505
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 25}  # the source of the copy that is the roofline


@dataclass(frozen=True)
class Plan:
    """A run: these problems of an op, every arm, `budget_s` seconds of measuring per point."""

    op: Op[Any]
    problems: tuple[Problem, ...]
    device: torch.device
    budget_s: float
    environment: Environment


@dataclass(frozen=True)
class Point:
    """The rows of one problem, and what the arms said that raised."""

    problem: Problem
    rows: list[Row]
    failures: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """An arm ready to be timed, on so many rotated copies of what it stores."""

    arm: str
    version: str
    dtype: str
    bytes: int
    flops: int
    copies: int
    lap: Lap
    accuracy: Accuracy


def measure_plan(plan: Plan) -> Iterator[Point]:
    """Measure every problem of `plan`."""
    copied = _copy_call(plan.device)
    for problem in plan.problems:
        candidates, failures = _candidates(plan, problem)
        copy = _copy_candidate(copied, plan.device)
        yield Point(problem, _time(plan, problem, [copy, *candidates]), failures)


def _candidates(plan: Plan, problem: Problem) -> tuple[list[Candidate], dict[str, str]]:
    """The arms that solve the problem, and what the others said."""
    generator = torch.Generator(plan.device).manual_seed(SEED)
    operands = plan.op.operands(problem.sizes, generator)
    flops = plan.op.flops(problem.sizes)
    ready, failures = [], {}
    for arm_type in plan.op.arms:
        if arm_type.unavailable(plan.device):
            continue
        try:
            arm = arm_type()
            work = arm.prepare(operands)
            if work is not None:
                ready.append(_candidate(arm, work, flops, plan.device))
        except Exception as error:  # whatever one raises, the others are measured all the same
            failures[arm_type.name] = f"{type(error).__name__}: {error}"
    return ready, failures


def _candidate(arm: Arm[Any], work: Work, flops: int, device: torch.device) -> Candidate:
    result = work.call(*work.stored)
    moved = size_of(work.stored) + size_of(work.inputs) + size_of(result)
    accuracy = work.check(result)
    if arm.least_sqnr_db is not None and not accuracy.agreement_db() >= arm.least_sqnr_db:
        raise ValueError(
            f"{accuracy.agreement_db():.1f} dB from float64, expected at least "
            f"{arm.least_sqnr_db:.0f} dB: not timed"
        )
    copies = rotated_copies(max(1, size_of(work.stored)), device)
    calls = [_bind(work, tuple(t.clone() for t in work.stored)) for _ in range(copies)]
    lap = make_lap(calls, device)
    return Candidate(arm.name, arm.version(), arm.dtype, moved, flops, copies, lap, accuracy)


def _time(plan: Plan, problem: Problem, candidates: Sequence[Candidate]) -> list[Row]:
    laps = {candidate.arm: candidate.lap for candidate in candidates}
    timings = measure(laps, plan.budget_s)
    sm_clock_mhz, power_w = clocks(plan.device)  # at once, while the clocks are still up
    copy_rate = candidates[0].bytes / timings[COPY].median_us

    def row(candidate: Candidate, timing: Timing) -> Row:
        rate = candidate.bytes / timing.median_us
        return Row(
            **asdict(problem),
            arm=candidate.arm,
            version=candidate.version,
            dtype=candidate.dtype,
            copies=candidate.copies,
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


def _copy_call(device: torch.device) -> Call:
    """Return a copy much larger than any cache: the roofline."""
    size = COPY_BYTES[device.type]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _copy_candidate(call: Call, device: torch.device) -> Candidate:
    """Return the roofline as an arm, counting bytes read and written."""
    moved, lap = 2 * COPY_BYTES[device.type], make_lap([call], device)
    return Candidate(COPY, torch.__version__, "uint8", moved, 0, 1, lap, Accuracy())


def _bind(work: Work, stored: Tensors) -> Call:
    return lambda: work.call(*stored)
