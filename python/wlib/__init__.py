"""wlib: weight kernels for PyTorch, matmuls that read their weights in a compressed form."""

from . import _ops, nn, quant, rebuild
from .atoms import atoms_from_layers, atoms_reconstruct, combine
from .atoms_linear import atoms_linear
from .atoms_optim import AtomsAdamW, AtomsLion, atoms_step
from .experts import PackedInt4Experts, int4fp8_gemm_grouped, pack_experts, sort_by_expert
from .fp4 import FP4Tensor, fp4_matmul, fp4_quantize, fp4_requantize_t, fp4_signs, hadamard
from .fp4_linear import fp4_linear, fp4_state, fp4_weight
from .fp4_recipe import FP4Recipe
from .info import info
from .int4fp8 import Int4Weight, PackedInt4Weight, int4fp8_gemm
from .prefill import (
    Int4KVCache,
    attention_prefill,
    merge_attention_states,
    quantize_kv_int4,
    quantize_q_fp8,
)
from .prng import prng_expand
from .quantizer import (
    fp8_group_sums,
    fp8_quantize,
    rms_norm_fp8_quantize,
    silu_mul_fp8_quantize,
)
from .sparse_lowrank import SparseSupport, sparse_lowrank_linear, sparse_support
from .tucker import tucker_merge, tucker_merge_many, tucker_reconstruct
from .vllm_cache import VllmInt4Cache

__version__ = "0.1.0"
__all__ = [
    "AtomsAdamW",
    "AtomsLion",
    "FP4Recipe",
    "FP4Tensor",
    "Int4KVCache",
    "Int4Weight",
    "PackedInt4Experts",
    "PackedInt4Weight",
    "SparseSupport",
    "VllmInt4Cache",
    "atoms_from_layers",
    "atoms_linear",
    "atoms_reconstruct",
    "atoms_step",
    "attention_prefill",
    "combine",
    "fp4_linear",
    "fp4_matmul",
    "fp4_quantize",
    "fp4_requantize_t",
    "fp4_signs",
    "fp4_state",
    "fp4_weight",
    "fp8_group_sums",
    "fp8_quantize",
    "hadamard",
    "info",
    "int4fp8_gemm",
    "int4fp8_gemm_grouped",
    "merge_attention_states",
    "nn",
    "pack_experts",
    "prng_expand",
    "quant",
    "quantize_kv_int4",
    "quantize_q_fp8",
    "rebuild",
    "rms_norm_fp8_quantize",
    "silu_mul_fp8_quantize",
    "sort_by_expert",
    "sparse_lowrank_linear",
    "sparse_support",
    "tucker_merge",
    "tucker_merge_many",
    "tucker_reconstruct",
]

del _ops  # imported for their effect: fake kernels and gradients
