"""Runs pickled cases on the build in $WLIB_PROBE_DIR and prints, as JSON, which checks fired.

WLIB_PROBE_DIR=<build of a mutant> python tests/sim/run_mutant.py cases.pickle
"""

from __future__ import annotations

import collections
import json
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def run_cases(path: Path) -> dict[str, object]:
    """How many of the pickled cases each check fired in, and where it did first."""
    fired: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    cases = pickle.loads(path.read_bytes())
    for case in cases:
        findings, correct = case.run()
        checks = {}
        for finding in findings:
            checks.setdefault(finding.check, f"{finding.message} [{finding.source}]")
        # A launch ends with its first findings, so its result is comparable only without any.
        if not checks and not correct:
            checks["numerics"] = "differs from the reference"
        fired.update(checks.keys())
        first = {**checks, **first}
    return {"cases": len(cases), "fired": fired, "first": first}


if __name__ == "__main__":
    json.dump(run_cases(Path(sys.argv[1])), sys.stdout)
