"""Schemas and sample calls of every op, family by family."""

from __future__ import annotations

from typing import Any

import torch

from . import atoms, fp4, int4fp8, prefill, rebuild, sparse_lowrank

FAMILIES = (int4fp8, prefill, atoms, rebuild, sparse_lowrank, fp4)
SCHEMAS = {name: schema for family in FAMILIES for name, schema in family.SCHEMAS.items()}


def samples() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls that cover every argument, empty batches and rows that lie apart."""
    torch.manual_seed(0)
    return [sample for family in FAMILIES for sample in family.samples()]
