"""Planted bugs in the int4fp8 kernels and the ring: textual edits, and the check that must fire.

`numerics` is the comparison with the float64 reference; every other name is one of the simulator's.
"""

from __future__ import annotations

from sim.mutants.int4fp8.cooperative import (
    COOPERATIVE_MUTANTS,
    PAIR_MUTANTS,
    PING_PONG_MUTANTS,
    ZERO_MUTANTS,
)
from sim.mutants.int4fp8.decode import CLUSTER_MUTANTS, RING_MUTANTS, VALUE_MUTANTS, WGMMA_MUTANTS
from sim.mutants.int4fp8.epilogue import EPILOGUE_MUTANTS
from sim.mutants.int4fp8.quantize import GROUP_SUMS_MUTANTS, QUANTIZER_MUTANTS

__all__ = ["MUTANTS"]

MUTANTS = [
    *RING_MUTANTS,
    *WGMMA_MUTANTS,
    *CLUSTER_MUTANTS,
    *VALUE_MUTANTS,
    *EPILOGUE_MUTANTS,
    *QUANTIZER_MUTANTS,
    *GROUP_SUMS_MUTANTS,
    *COOPERATIVE_MUTANTS,
    *PING_PONG_MUTANTS,
    *PAIR_MUTANTS,
    *ZERO_MUTANTS,
]
