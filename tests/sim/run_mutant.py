"""Runs pickled cases on one build of the kernels and tells which checks fired."""

from __future__ import annotations

import collections
import os
import pickle
from multiprocessing.connection import Connection
from pathlib import Path


def run_cases(pickled: Path, probe: Path, answer: Connection) -> None:
    """Send how many of the cases each check fired in, and where it did first.

    `probe` is the folder of the build; this process must not have loaded another one.
    """
    os.environ["WLIB_PROBE_DIR"] = str(probe)
    fired: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    cases = pickle.loads(pickled.read_bytes())
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
    answer.send({"cases": len(cases), "fired": dict(fired), "first": first})
