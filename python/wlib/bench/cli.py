"""The command line: `python -m wlib bench int4fp8`, or `all`."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from . import compare
from .environment import environment
from .ops import OPS
from .rows import OURS, Row, append_rows, read_rows
from .runner import Plan, Point, measure_plan
from .suites import Problem, load_suite, suite_names
from .summary import summary
from .table import show, show_changes

BUDGET_S, QUICK_BUDGET_S = 0.5, 0.05  # of measuring per point

EXIT_SLOWER, EXIT_USAGE, EXIT_FAILED = 1, 2, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m wlib bench` to `parser`."""
    parser.add_argument("op", choices=[*sorted(OPS), "all"], help="the op to measure")
    parser.add_argument(
        "--shapes",
        type=_comma_separated,
        default=["llama3-8b"],
        metavar="SUITE,...",
        help=f"suites ({', '.join(suite_names())}) or .toml files; default llama3-8b",
    )
    parser.add_argument(
        "--m", type=_sizes, metavar="M,...", help="values of the axis m; default the suite's"
    )
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="stop after about so long; the ops share what is left of it in equal parts",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the measuring time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON lines")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the run as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw each op (.png, .svg)")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help=f"compare with an earlier run; exit code {EXIT_SLOWER} if an arm is slower",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark `args` ask for.

    Returns:
        0, or `EXIT_SLOWER` if an arm got slower than in the run compared with, `EXIT_USAGE` if
        the arguments make no sense, `EXIT_FAILED` if a wlib arm raised.
    """
    try:
        plans = _plans(args)
        old = read_rows(args.compare) if args.compare else None
    except (OSError, ValueError) as error:
        print(f"wlib bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    if args.json:
        args.json.unlink(missing_ok=True)
    rows: list[Row] = []
    failed = False
    for point in _measure(plans, args.seconds):
        rows += point.rows
        failed |= any(arm.startswith(OURS) for arm in point.failures)
        if args.json:
            append_rows(args.json, point.rows)
        if args.summary:  # after each point: what was measured survives a run that is stopped
            args.summary.write_text(summary(rows))
    if args.plot:
        from wlib.bench.plot import plot  # matplotlib takes a second and is an extra

        plot(rows, args.plot)
    if old is not None and (code := _compare(old, rows)):
        return code
    return EXIT_FAILED if failed else 0


def _plans(args: argparse.Namespace) -> list[Plan]:
    if not args.cpu and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device: say --cpu to measure on the CPU")
    if args.plot and not find_spec("matplotlib"):
        raise ValueError("--plot needs matplotlib: pip install wlib[bench]")
    device = torch.device("cpu" if args.cpu else "cuda")
    budget_s = QUICK_BUDGET_S if args.quick else BUDGET_S
    here = environment(device)
    suites = [load_suite(name) for name in args.shapes]
    plans = []
    for op in OPS.values() if args.op == "all" else [OPS[args.op]]:
        problems: list[Problem] = []
        for suite in suites:
            if args.op == "all":  # what the suite has, at these M where it has several
                if op.name in suite.tables:
                    problems += suite.problems(op, args.m if suite.has_axis(op.name, "m") else None)
            else:
                problems += suite.problems(op, args.m)
        if problems:
            plans.append(Plan(op, tuple(problems), device, budget_s, here))
    if not plans:
        raise ValueError(f"the suites {args.shapes} have no shapes")
    return plans


def _measure(plans: Sequence[Plan], seconds: float | None = None) -> Iterator[Point]:
    points = _within(plans, seconds) if seconds else _all(plans)
    total = sum(len(plan.problems) for plan in plans)
    left_out: dict[str, list[str]] = {}
    for plan in plans:
        for arm in plan.op.arms:
            if reason := arm.unavailable(plan.device):
                left_out.setdefault(reason, []).append(f"{arm.name} of {plan.op.name}")
    for reason, arms in left_out.items():
        print(f"left out, {reason}: {', '.join(arms)}")
    here = plans[0].environment
    ops = ", ".join(plan.op.name for plan in plans)
    title = f"{ops} on {here.device}, torch {here.torch}, commit {here.commit}"
    return show(points, total, title)


def _all(plans: Sequence[Plan]) -> Iterator[Point]:
    return (point for plan in plans for point in measure_plan(plan))


def _within(plans: Sequence[Plan], seconds: float) -> Iterator[Point]:
    """The points begun in time; an op that leaves some of its share leaves it to those after it."""
    end = time.monotonic() + seconds
    for number, plan in enumerate(plans):
        now = time.monotonic()
        share = now + (end - now) / (len(plans) - number)
        for done, point in enumerate(measure_plan(plan), start=1):
            yield point
            if done < len(plan.problems) and time.monotonic() >= share:
                print(f"{plan.op.name}: {done} of {len(plan.problems)} points, out of time")
                break


def _compare(old: Sequence[Row], new: Sequence[Row]) -> int:
    found = compare.changes(old, new)
    if not found:
        print("wlib bench: the runs share no arm, shape, sizes and device", file=sys.stderr)
        return EXIT_USAGE
    show_changes(found)
    return EXIT_SLOWER if any(change.verdict == "slower" for change in found) else 0


def _comma_separated(text: str) -> list[str]:
    return text.split(",")


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError("expected sizes of at least 1")
    return sizes
