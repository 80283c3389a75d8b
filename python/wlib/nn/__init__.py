"""Drop-in modules with compressed weights."""

from .experts import Int4Fp8Experts
from .fp4 import FP4Linear, seed_fp4
from .gate_up import Int4Fp8GateUp
from .int4fp8 import Int4Fp8Linear
from .replace import replace_linear
from .sparse_lowrank import SparseLowRankLinear

__all__ = [
    "FP4Linear",
    "Int4Fp8Experts",
    "Int4Fp8GateUp",
    "Int4Fp8Linear",
    "SparseLowRankLinear",
    "replace_linear",
    "seed_fp4",
]
