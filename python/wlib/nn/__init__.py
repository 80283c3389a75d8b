"""Drop-in modules with compressed weights."""

from .atoms import AtomDictionary, AtomLinear, cached_weights, merge_atoms
from .attention import Int4PrefillAttention
from .delta import DeltaLayer, FoldWarning, NolaLinear, TuckerConv2d, TuckerLinear
from .experts import Int4Fp8Experts
from .fp4 import FP4Linear, seed_fp4
from .gate_up import Int4Fp8GateUp
from .int4fp8 import Int4Fp8Linear
from .replace import replace_linear
from .share import SharedGroup, ShareReport, share_attention
from .sparse_lowrank import SparseLowRankLinear

__all__ = [
    "AtomDictionary",
    "AtomLinear",
    "DeltaLayer",
    "FP4Linear",
    "FoldWarning",
    "Int4Fp8Experts",
    "Int4Fp8GateUp",
    "Int4Fp8Linear",
    "Int4PrefillAttention",
    "NolaLinear",
    "ShareReport",
    "SharedGroup",
    "SparseLowRankLinear",
    "TuckerConv2d",
    "TuckerLinear",
    "cached_weights",
    "merge_atoms",
    "replace_linear",
    "seed_fp4",
    "share_attention",
]
