"""The tests of a family's planted bugs; conftest.py gives them their bugs and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sim.planting import Cases, Mutant, Results, apply, control, run_all


class PlantedBugs:
    """Derive as `TestPlantedBugs`."""

    mutants: ClassVar[Sequence[Mutant]]

    @staticmethod
    def make_cases() -> Cases:
        """Cases by the instrumented file they run."""
        raise NotImplementedError

    @classmethod
    def run(cls, folder: Path) -> Results:
        """What every bug, and the unchanged source of every file, fires."""
        cases = cls.make_cases()
        controls = [control(source, cls.mutants) for source in cases]
        return run_all([*controls, *cls.mutants], cases, folder)

    def test_every_edit_fits_the_sources(self, tmp_path: Path) -> None:
        for mutant in self.mutants:
            apply(mutant, tmp_path)

    @pytest.mark.slow
    def test_the_original_is_silent(self, planted: Results) -> None:
        for source, cases in self.make_cases().items():
            assert cases
            expected = {"cases": len(cases), "fired": {}, "first": {}}
            assert planted[control(source, self.mutants).name] == expected

    @pytest.mark.slow
    def test_planted_bug_is_caught(self, planted: Results, mutant: Mutant) -> None:
        result = planted[mutant.name]
        assert mutant.caught_by in result["fired"], result
