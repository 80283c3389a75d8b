"""Errors of an arm's output against float64."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Errors of one output.

    `sqnr_db` and `max_rel_error` (over the largest reference value) compare with float64 arithmetic
    on the operands as the arm stores them: what its arithmetic costs. `format_sqnr_db` compares
    with the operands before they were stored: what its number formats cost. All are None for an arm
    that computes nothing; a ratio is None where there is no error at all.
    """

    sqnr_db: float | None = None
    max_rel_error: float | None = None
    format_sqnr_db: float | None = None

    def agreement_db(self) -> float:
        """Return the SQNR of what the arm computes, infinite where it is exact or not judged."""
        judged = self.format_sqnr_db if self.max_rel_error is None else self.sqnr_db
        return math.inf if judged is None else judged


def compare(y: Tensor, reference: Tensor, unquantized: Tensor) -> Accuracy:
    """Compare `y` with the float64 results of its stored operands and of the original ones."""
    error = (y.double() - reference).abs().max() / reference.abs().max()
    return Accuracy(sqnr_db(y, reference), error.item(), sqnr_db(y, unquantized))


def sqnr_db(y: Tensor, reference: Tensor) -> float | None:
    """Return signal over quantisation noise of `y` in dB, None where there is no noise."""
    signal = reference.square().sum().item()
    noise = (y.double() - reference).square().sum().item()
    return 10 * math.log10(signal / noise) if noise else None
