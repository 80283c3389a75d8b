"""Drop-in modules with compressed weights."""

from .gate_up import Int4Fp8GateUp
from .int4fp8 import Int4Fp8Linear
from .replace import replace_linear
from .sparse_lowrank import SparseLowRankLinear

__all__ = ["Int4Fp8GateUp", "Int4Fp8Linear", "SparseLowRankLinear", "replace_linear"]
