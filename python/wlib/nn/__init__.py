"""Drop-in modules with compressed weights."""

from .experts import Int4Fp8Experts
from .gate_up import Int4Fp8GateUp
from .int4fp8 import Int4Fp8Linear
from .replace import replace_linear

__all__ = ["Int4Fp8Experts", "Int4Fp8GateUp", "Int4Fp8Linear", "replace_linear"]
