"""Calls of the ops that can be made again: what a call writes is copied, what it gives is bytes."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from op_samples import samples

Sample = tuple[str, tuple[Any, ...], dict[str, Any]]


def overload(name: str) -> torch._ops.OpOverload:
    packet, overload_name = name.split(".")
    return getattr(getattr(torch.ops.wlib, packet), overload_name)


def tensors(values: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def named_arguments(sample: Sample) -> dict[str, Any]:
    """The arguments that are given, by name; what the op writes is a copy."""
    name, arguments, options = sample
    declared = overload(name)._schema.arguments
    given = {a.name: value for a, value in zip(declared, arguments, strict=False)} | options
    for key in written(name):
        given[key] = pytree.tree_map_only(Tensor, torch.clone, given[key])
    return given


def written(name: str) -> list[str]:
    """The arguments that the op writes."""
    declared = overload(name)._schema.arguments
    return [a.name for a in declared if a.alias_info and a.alias_info.is_write]


def bits_of(name: str, given: dict[str, Any]) -> list[bytes]:
    """Of everything that the call returns or writes."""
    result = overload(name)(**given)
    return [as_bytes(t) for t in tensors([result, [given[key] for key in written(name)]])]


def bits(sample: Sample) -> list[bytes]:
    return bits_of(sample[0], named_arguments(sample))


def digest(sample: Sample) -> str:
    return hashlib.sha256(b"|".join(bits(sample))).hexdigest()


def one_per_op() -> list[Sample]:
    """The first sample of every op."""
    found: dict[str, Sample] = {}
    for sample in samples():
        found.setdefault(sample[0], sample)
    return list(found.values())


def to_device(value: Any, device: str) -> Any:
    """An argument on another device, its rows as far apart as they were."""
    if isinstance(value, torch.device):
        return torch.device(device)
    if not isinstance(value, Tensor) or 0 in value.stride():
        return value.to(device) if isinstance(value, Tensor) else value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return copy.copy_(value.detach())


def far_apart(matrix: Tensor) -> Tensor:
    """A copy whose last row begins 2^31 elements behind the first, in memory that is not used."""
    rows = math.prod(matrix.shape[:-1])
    apart = -(-(2**31) // (rows - 1) // 16) * 16
    strides = [apart * math.prod(matrix.shape[i + 1 : -1]) for i in range(matrix.dim() - 1)]
    size = ((rows - 1) * apart + matrix.shape[-1]) * matrix.element_size()
    if matrix.is_cuda:
        memory = torch.empty(size, dtype=torch.uint8, device=matrix.device)
    else:
        reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE of Linux
        memory = torch.frombuffer(mmap.mmap(-1, size, flags=reserve), dtype=torch.uint8)
    copy = memory.view(matrix.dtype).as_strided(matrix.shape, (*strides, 1))
    return copy.copy_(matrix.detach())


def matrices(sample: Sample) -> list[tuple[str, int]]:
    """Tensors with rows that could lie apart: the argument, and which of its tensors."""
    return [
        (key, i)
        for key, value in named_arguments(sample).items()
        for i, leaf in enumerate(pytree.tree_leaves(value))
        if isinstance(leaf, Tensor) and leaf.numel() > leaf.shape[-1:].numel()
    ]


# Arguments whose rows may lie apart; wherever else, the op may copy them or refuse them.
VIEWS = {
    "fp8_quantize x", "rms_norm_fp8_quantize x", "rms_norm_fp8_quantize residual",
    "silu_mul_fp8_quantize gate_up", "fp8_group_sums xq", "int4fp8_gemm x",
    "int4fp8_gemm_grouped x", "quantize_q_fp8 q", "append_kv_int4 k", "append_kv_int4 v",
    "tile_sparse_matmul x", "tile_sampled_matmul dy", "tile_sampled_matmul x",
    "fp4_quantize x", "hadamard x",
}  # fmt: skip


def views() -> list[tuple[Sample, str, int]]:
    """A sample for each of `VIEWS`, the argument, and which of its tensors."""
    found = {
        f"{sample[0].split('.')[0]} {key}": (sample, key, i)
        for sample in reversed(samples())
        for key, i in matrices(sample)
    }
    return [found[name] for name in sorted(VIEWS)]


def bits_far_apart(sample: Sample, key: str, i: int) -> list[bytes]:
    """What a call gives when one of its matrices is `far_apart`."""
    given = named_arguments(sample)
    leaves, spec = pytree.tree_flatten(given[key])
    leaves[i] = far_apart(leaves[i])
    return bits_of(sample[0], given | {key: pytree.tree_unflatten(leaves, spec)})


def placed(
    tensor: Tensor, buffers: list[Callable[[], bool]], poison: int, apart: int = 0
) -> Tensor:
    """A copy inside a larger buffer of bytes `poison`, which also fill the gaps between its rows.

    Rows lie `apart` elements further from each other. A function that tells whether every byte
    around the copy is still there is appended to `buffers`.
    """
    guard = 256  # bytes on either side; as aligned as torch's own memory
    strides = list(tensor.stride())
    if apart:
        wide = tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] + apart))
        strides = list(wide.stride())
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    span = span if tensor.numel() else 0
    item = tensor.element_size()
    memory = torch.full((2 * guard + span * item,), poison, dtype=torch.uint8)
    inside = memory[guard : guard + span * item]
    copy = inside.view(tensor.dtype).as_strided(tensor.shape, strides)
    copy.copy_(tensor.detach())
    gaps = torch.ones(span, dtype=torch.bool)
    gaps[torch.arange(span).as_strided(tensor.shape, strides).flatten()] = False

    def untouched() -> bool:
        around = memory[:guard], memory[guard + span * item :], inside.view(span, item)[gaps]
        return all(bool((part == poison).all()) for part in around)

    buffers.append(untouched)
    return copy
