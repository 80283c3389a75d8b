"""Drop-in modules with compressed weights."""

from .atoms import AtomDictionary, AtomLinear, cached_weights, merge_atoms
from .delta import DeltaLayer, FoldWarning, NolaLinear, TuckerConv2d, TuckerLinear
from .experts import Int4Fp8Experts
from .gate_up import Int4Fp8GateUp
from .int4fp8 import Int4Fp8Linear
from .replace import replace_linear
from .share import SharedGroup, ShareReport, share_attention

__all__ = [
    "AtomDictionary",
    "AtomLinear",
    "DeltaLayer",
    "FoldWarning",
    "Int4Fp8Experts",
    "Int4Fp8GateUp",
    "Int4Fp8Linear",
    "NolaLinear",
    "ShareReport",
    "SharedGroup",
    "TuckerConv2d",
    "TuckerLinear",
    "cached_weights",
    "merge_atoms",
    "replace_linear",
    "share_attention",
]
