"""What torch knows of each op beside its kernels, family by family: fake kernels and gradients."""

from . import atoms, fp4, fp4_linear, int4fp8, prefill, prng, rebuild, sparse_lowrank  # noqa: F401
