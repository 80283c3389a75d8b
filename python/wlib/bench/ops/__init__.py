"""The ops that can be measured, by name."""

from typing import Any

from ..op import Op
from . import (
    atoms,
    atoms_linear,
    fp4,
    grouped,
    int4fp8,
    kv_cache,
    prefill,
    quantize,
    rebuild,
    sparse_lowrank,
)
from .peers import with_peers

OPS: dict[str, Op[Any]] = {
    op.name: with_peers(op)
    for op in (
        int4fp8.OP,
        grouped.OP,
        quantize.OP,
        *fp4.OPS,
        *atoms.OPS,
        atoms_linear.OP,
        *rebuild.OPS,
        sparse_lowrank.OP,
        prefill.OP,
        kv_cache.OP,
    )
}
