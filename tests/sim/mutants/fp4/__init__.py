"""Planted bugs in the quantiser of FP4: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.mutants.fp4.fold import FOLD_MUTANTS
from sim.mutants.fp4.quantize import QUANTIZE_MUTANTS
from sim.mutants.fp4.take import TAKE_MUTANTS

__all__ = ["MUTANTS"]

MUTANTS = [*TAKE_MUTANTS, *QUANTIZE_MUTANTS, *FOLD_MUTANTS]
