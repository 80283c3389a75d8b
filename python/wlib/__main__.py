"""``python -m wlib info | selftest | bench | convert``."""

from __future__ import annotations

import argparse
import sys

from . import selftest
from .bench import cli as bench
from .formats import cli as convert
from .info import info


def main() -> int:
    """Parse the command line and run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m wlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, build, devices and dispatch tables")
    selftest.add_arguments(commands.add_parser("selftest", help="exact checks on every device"))
    bench.add_arguments(commands.add_parser("bench", help="measure speed"))
    convert.add_arguments(
        commands.add_parser("convert", help="write an INT4 checkpoint in another format")
    )
    args = parser.parse_args()
    if args.command == "info":
        print(info())
        return 0
    run = {"selftest": selftest.run, "bench": bench.run, "convert": convert.run}[args.command]
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
