"""Compares the rows of a run with those of an earlier one on the same device."""

from collections.abc import Iterable
from dataclasses import dataclass

from .rows import COPY, Row

TOLERANCE = 1.05  # a median may grow by this much even if the intervals are disjoint


@dataclass(frozen=True)
class Change:
    """The same arm at the same point on the same device, before and now."""

    old: Row
    new: Row

    @property
    def ratio(self) -> float:
        """New median over old median: above 1 is slower."""
        return self.new.median_us / self.old.median_us

    @property
    def verdict(self) -> str:
        """`slower` or `faster` if the medians' 95 % intervals are disjoint and far apart."""
        if self.new.low_us > self.old.high_us and self.ratio > TOLERANCE:
            return "slower"
        if self.new.high_us < self.old.low_us and self.ratio < 1 / TOLERANCE:
            return "faster"
        return "same"


def changes(old: Iterable[Row], new: Iterable[Row]) -> list[Change]:
    """Pair the rows of two runs; the last of several old rows counts. The roofline is no arm."""
    before = {_key(row): row for row in old}
    return [
        Change(before[_key(row)], row) for row in new if row.arm != COPY and _key(row) in before
    ]


def _key(row: Row) -> tuple[object, ...]:
    return (*row.point, row.arm, row.environment.device)
