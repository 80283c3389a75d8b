"""Bugs planted in the epilogue, which both GEMM kernels share."""

from __future__ import annotations

from sim.mutants.int4fp8.planted import STORE, mutant

EPILOGUE_MUTANTS = [
    mutant("gate and up swapped", "numerics", STORE, "silu(v0) * v1", "silu(v1) * v0"),
    mutant("gate without silu", "numerics", STORE, "silu(v0) * v1", "v0 * v1"),
    mutant("gated outputs as far apart as rows", "global-bounds", STORE, "gated ? n / 2 : n", "n"),
    mutant("gated outputs in pairs", "global-race", STORE, "both = !gated && n", "both = n"),
    mutant(
        "residual before the activation",
        "numerics",
        STORE,
        "  if (e.activation == Activation::kSiluMul) v0",
        "  v0 += residual.x;\n  if (e.activation == Activation::kSiluMul) v0",
        "  v0 += residual.x;\n  v1",
        "  v1",
    ),
    mutant(
        "residual of another lane",
        "global-race",
        STORE,
        "residual_type, to.at",
        "residual_type, to.at ^ 1",
    ),
    mutant(
        "residual of the first pair for the second",
        "numerics",
        STORE,
        "v1 += residual.y",
        "v1 += residual.x",
    ),
    mutant("FP8 outputs unscaled", "numerics", STORE, "= *e.out_scale", "= 1"),
    mutant(
        "wider rows than y has",
        "global-bounds",
        STORE,
        "int64_t(m) * p.columns",
        "int64_t(m) * p.n",
    ),
]
