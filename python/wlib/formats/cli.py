"""The command line: `python -m wlib convert IN OUT --format wlib`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

from .checkpoint import FORMATS
from .convert import SHARD_BYTES, convert

_BAR = 24
EXIT_REFUSED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m wlib convert` to `parser`."""
    parser.add_argument("source", type=Path, metavar="IN", help="safetensors file or folder")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="format of OUT")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is a checkpoint")
    parser.add_argument(
        "--shard-gb",
        type=float,
        default=SHARD_BYTES / 1e9,
        metavar="GB",
        help="largest file to write; default %(default)g",
    )


def run(args: argparse.Namespace) -> int:
    """Convert as `args` ask; returns 0, or `EXIT_REFUSED` with the reason on stderr."""
    bar = ProgressBar(sys.stderr)
    try:
        done = convert(
            args.source,
            args.target,
            args.format,
            force=args.force,
            shard_bytes=int(args.shard_gb * 1e9),
            progress=bar.show,
        )
    except (OSError, TypeError, ValueError) as error:
        bar.clear()
        print(f"wlib convert: {error}", file=sys.stderr)
        return EXIT_REFUSED
    bar.clear()
    print(f"{done.layers} INT4 layers in {len(done.files)} file(s): {args.target}")
    if done.worst_layer:
        where = f"{done.scale_error:.2g} (relative), in {done.worst_layer}"
        print(f"largest rounding of a scale: {where}")
    else:
        print("every scale was kept exactly")
    return 0


class ProgressBar:
    """One line that is drawn over and over; nothing if the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if stream.isatty() else None

    def show(self, done: int, total: int, name: str) -> None:
        """Draw `done` of `total` bytes and what was read last."""
        if self._stream:
            share = done / max(total, 1)
            bar = "#" * int(share * _BAR)
            text = f"{share:4.0%} [{bar:<{_BAR}}] {done / 1e9:.1f}/{total / 1e9:.1f} GB {name}"
            self._stream.write(f"\r\x1b[K{text[:100]}")
            self._stream.flush()

    def clear(self) -> None:
        """Empty the line for what is printed next."""
        if self._stream:
            self._stream.write("\r\x1b[K")
