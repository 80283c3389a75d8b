"""One measured point as a row, and the JSONL files rows are kept in."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .environment import Environment

COPY = "copy"  # the arm that measures the roofline
OURS = "wlib"  # the arm that is this library; variants of it begin with the same word


@dataclass(frozen=True)
class Row:
    """One arm at one point (shape, M).

    Times are microseconds of one call. `bytes` counts the stored weight, the inputs and the output
    once each; `copy_fraction` is its rate over that of a large copy in the same run, both counting
    every byte read or written. `speedup` maps each other arm to its median over this median. The
    errors are those of `Accuracy`, of a sample of the output; clock and power are read right after
    the laps, None where the device does not tell.
    """

    op: str
    shape: str
    n: int
    k: int
    m: int
    group_size: int
    arm: str
    version: str
    dtype: str
    median_us: float
    p10_us: float
    p90_us: float
    rounds: int
    weight_copies: int
    bytes: int
    flops: int
    gb_per_s: float
    copy_fraction: float
    tflops: float
    speedup: dict[str, float]
    sqnr_db: float | None
    max_rel_error: float | None
    format_sqnr_db: float | None
    seed: int
    sm_clock_mhz: float | None
    power_w: float | None
    environment: Environment

    @property
    def point(self) -> tuple[str, str, int, int, int, int]:
        """What was computed: rows with the same point solve the same problem."""
        return (self.op, self.shape, self.n, self.k, self.group_size, self.m)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append `rows` to the JSONL file `path`."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a JSONL file.

    Raises:
        ValueError: a line is not a row as this version writes them.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            data = json.loads(line)
            rows.append(Row(**{**data, "environment": Environment(**data["environment"])}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: not a benchmark row: {error}") from error
    return rows
