"""What the lists of planted bugs share: the files they change, and how an edit is written."""

from __future__ import annotations

from sim.planting import Mutant

SIDE = "csrc/fp4/sm90_side.h"
HADAMARD = "csrc/fp4/sm90_hadamard.h"
TILE = "csrc/fp4/sm90_tile.h"
PAIRS = "csrc/fp4/sm90_pairs.h"
EXPAND = "csrc/fp4/sm90_expand.h"
SCAN = "csrc/fp4/sm90_scan.h"
QUANTIZE = "csrc/fp4/sm90_quantize.h"
ENCODE = "csrc/fp4/sm90_encode.h"
FOLD = "csrc/fp4/sm90_fold.h"
VOTE = "csrc/fp4/sm90_vote.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    """Of old and new texts in turn."""
    return Mutant.of(name, caught_by, file, "sim_fp4.cpp", *texts)
