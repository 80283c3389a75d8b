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
    """One arm on one problem.

    `shape` and `sizes` say what was computed, `at` the values of the axes. Times are microseconds
    of one call: the median with its 95 % interval (`low_us`, `high_us`), 10th and 90th percentile.
    `bytes` counts what the arm stores, its inputs and its outputs once each; `copy_fraction` is its
    rate over that of a large copy in the same run, both counting every byte read or written.
    `speedup` maps each other arm to its median over this median. The errors are those of
    `Accuracy`, of a sample of the output; clock and power are read right after the laps, None
    where the device does not tell.
    """

    op: str
    shape: str
    at: str
    sizes: dict[str, int]
    arm: str
    version: str
    dtype: str
    median_us: float
    low_us: float
    high_us: float
    p10_us: float
    p90_us: float
    rounds: int
    copies: int
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
    def point(self) -> tuple[object, ...]:
        """What was computed: rows with the same point solve the same problem."""
        return (self.op, self.shape, *sorted(self.sizes.items()))


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
