"""INT4 weights of a mixture of experts times FP8 activations, all experts in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import layout
from .errors import check_device, check_dtype, check_shape, refuse, typed_error
from .int4fp8 import Activation, Int4Weight, PackedInt4Weight

_PACKED = "wlib.PackedInt4Experts"
_PACK = "wlib.pack_experts"
_ROUTE = "wlib.sort_by_expert"


@dataclass(frozen=True, eq=False)
class PackedInt4Experts:
    """INT4 weights [E, N, K] of a stack of experts in the layout the kernels read.

    Attributes:
        data: uint8 [E, ceil(N/64), bytes per row block], contiguous: of each expert what
            `PackedInt4Weight.data` holds of one weight.
        n, k: output and input features of an expert.
        group_size: columns that share a scale.
        has_zero_point, has_channel_scale: which optional tensors the weights were packed with.
        layout_version: version of the layout of `data`.

    Raises:
        TypeError: data is not uint8.
        ValueError: data has not the shape the other fields ask for, or the version is unknown.
    """

    data: Tensor
    n: int
    k: int
    group_size: int
    has_zero_point: bool = False
    has_channel_scale: bool = False
    layout_version: int = layout.LAYOUT_VERSION

    def __post_init__(self) -> None:
        if self.layout_version != layout.LAYOUT_VERSION:
            expected = f"layout_version {layout.LAYOUT_VERSION}"
            refuse(_PACKED, expected, self.layout_version, "layout_version")
        layout.check_group_size(_PACKED, self.k, self.group_size)
        check_dtype(_PACKED, "data", self.data, torch.uint8)
        shape = layout.packed_shape(self.n, self.k, self.group_size, self.has_zero_point)
        experts = self.data.shape[0] if self.data.dim() == 3 else 0
        check_shape(_PACKED, "data", self.data, [max(experts, 1), *shape])

    @classmethod
    def quantize(
        cls, w: Tensor, group_size: int = 128, *, clip_search: bool = False
    ) -> PackedInt4Experts:
        """Quantise and pack weights [E, N, K], one expert after the other.

        The arguments and errors are those of `wlib.Int4Weight.quantize`, for each expert.
        """
        if w.dim() != 3 or len(w) == 0:
            refuse(f"{_PACKED}.quantize", "w of shape [E, N, K]", list(w.shape), "w")
        options = {"clip_search": clip_search}
        return pack_experts([Int4Weight.quantize(one, group_size, **options) for one in w])

    @classmethod
    def zeros(
        cls,
        experts: int,
        n: int,
        k: int,
        group_size: int = 128,
        *,
        has_zero_point: bool = False,
        has_channel_scale: bool = False,
        device: torch.device | str | None = None,
    ) -> PackedInt4Experts:
        """A stack of zeros, for a state dict to fill."""
        shape = (experts, *layout.packed_shape(n, k, group_size, has_zero_point))
        data = torch.zeros(shape, dtype=torch.uint8, device=device)
        return cls(data, n, k, group_size, has_zero_point, has_channel_scale)

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return self.data.shape[0]

    def __getitem__(self, expert: int) -> PackedInt4Weight:
        """The weight of one expert, sharing its data."""
        return PackedInt4Weight(
            self.data[expert],
            self.n,
            self.k,
            self.group_size,
            self.has_zero_point,
            self.has_channel_scale,
        )

    def to(self, device: torch.device | str) -> PackedInt4Experts:
        """The same weights on another device."""
        return replace(self, data=self.data.to(device))


def pack_experts(weights: Sequence[Int4Weight]) -> PackedInt4Experts:
    """Pack the weights of all experts into one stack.

    Args:
        weights: one weight [N, K] per expert, with the same group size, on one device. If some have
            zero points or channel scales, the others count as having zeros and ones.

    Raises:
        ValueError: there are no weights, or two do not fit.
    """
    if not weights:
        refuse(_PACK, "weights of at least one expert", 0, "weights")
    first = weights[0]
    sizes = [first.n, first.k, first.group_size]
    zeros = any(w.zero_point is not None for w in weights)
    channels = any(w.channel_scale is not None for w in weights)
    packed = []
    for w in weights:
        if [w.n, w.k, w.group_size] != sizes:
            found = [w.n, w.k, w.group_size]
            refuse(_PACK, f"weights with [n, k, group_size] = {sizes}", found, "weights")
        check_device(_PACK, "weights", w.codes, first.codes.device)
        zero_point, channel_scale = w.zero_point, w.channel_scale
        if zeros and zero_point is None:
            zero_point = torch.zeros_like(w.group_scale, dtype=torch.float32)
        if channels and channel_scale is None:
            channel_scale = torch.ones(w.n, device=w.codes.device)
        packed.append(layout.pack(w.codes, w.group_scale, zero_point, channel_scale))
    return PackedInt4Experts(
        torch.stack(packed), first.n, first.k, first.group_size, zeros, channels
    )


class Routing(NamedTuple):
    """Which token goes where: what `int4fp8_gemm_grouped` wants to know, and the way back.

    Attributes:
        token: int64 [M * top_k], the token of each routed row; rows are sorted by expert and, of
            one expert, by token.
        row: int64 [M, top_k], the routed row of each choice of each token: the inverse.
        expert_offsets: int32 [E + 1], the first row of each expert, and the number of rows.
    """

    token: Tensor
    row: Tensor
    expert_offsets: Tensor


def sort_by_expert(topk_ids: Tensor, experts: int) -> Routing:
    """Sort the experts' rows, without a look at a value on the host.

    Args:
        topk_ids: integers [M, top_k], the experts of each token, 0 to experts - 1.
        experts: how many experts there are.

    Raises:
        TypeError: topk_ids are not integers.
        ValueError: topk_ids have another shape.
    """
    check_dtype(_ROUTE, "topk_ids", topk_ids, torch.int64, torch.int32)
    if topk_ids.dim() != 2:
        refuse(_ROUTE, "topk_ids of shape [M, top_k]", list(topk_ids.shape), "topk_ids")
    ids, order = topk_ids.flatten().sort(stable=True)
    row = torch.empty_like(order)
    row.scatter_(0, order, torch.arange(len(order), device=order.device))
    edges = torch.arange(experts + 1, dtype=ids.dtype, device=ids.device)
    offsets = torch.searchsorted(ids, edges, out_int32=True)
    token = order // max(topk_ids.shape[1], 1)
    return Routing(token, row.view(topk_ids.shape), offsets)


def int4fp8_gemm_grouped(
    xq: Tensor,
    p: PackedInt4Experts,
    xs: Tensor,
    expert_offsets: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
) -> Tensor:
    """Multiply the FP8 activations of every expert's tokens with its packed INT4 weight.

    Rows expert_offsets[e] to expert_offsets[e + 1] of xq meet the weight and the bias of expert e;
    what is computed of a row is what `wlib.int4fp8_gemm` computes, epilogue included. One launch,
    and none of it depends on how many tokens an expert has: expert_offsets stay on the device.

    The result of a row does not depend on the other rows, nor on where they go. On a GPU its bits
    depend on T, E, N, K and the weights' format alone; on a CPU, as with `wlib.int4fp8_gemm`, on
    how many tokens its expert has, too.

    Args:
        xq: float8_e4m3fn [T, K], sorted by expert.
        p: the packed weights [E, N, K], on the device of xq; at most 512 experts.
        xs: float32 [T], scale of each token.
        expert_offsets: int32 or int64 [E + 1], on the device of xq, rising from 0 to T; an expert
            may have any number of tokens. A CPU refuses other offsets. A GPU does not look at them
            beforehand: other ones give an unspecified y, and nothing else.
        bias: None, or float32, bfloat16 or float16 [E, N].
        out_dtype, out, residual, activation, out_scale, x_sums: as `wlib.int4fp8_gemm` takes them,
            [T, N'] and, of x_sums, [ceil(K/s), T rounded up to a multiple of 4].

    Returns:
        y [T, N'] of out_dtype, or `out`; N' is N, or N / 2 with "silu_mul".

    Raises:
        TypeError: an argument has the wrong dtype, or p is not a packed stack.
        ValueError: a shape, a device, the group size, the activation or an alignment does not fit,
            expert_offsets on a CPU do not rise from 0 to T, or `out` and the residual overlap
            without being the same.
        NotImplementedError: no kernel serves the device of xq.
    """
    where = "wlib.int4fp8_gemm_grouped"
    if not isinstance(p, PackedInt4Experts):
        refuse(where, "p to be a PackedInt4Experts", type(p).__name__, "p", TypeError)
    if xq.dim() != 2 or xq.shape[1] != p.k:  # padded to 128, two K may pack alike
        refuse(where, f"xq of shape [T, {p.k}] to match k={p.k}", list(xq.shape), "xq")
    check_shape(where, "expert_offsets", expert_offsets, [p.experts + 1])
    arguments = (xq, p.data, xs, expert_offsets)
    options = {
        "n": p.n,
        "group_size": p.group_size,
        "bias": bias,
        "residual": residual,
        "activation": activation,
        "out_scale": out_scale,
        "x_sums": x_sums,
        "layout_version": p.layout_version,
    }
    op = torch.ops.wlib.int4fp8_gemm_grouped
    try:
        if out is None:
            out = op(*arguments, out_dtype=out_dtype, **options)
        else:
            op.out(*arguments, out=out, **options)
    except ValueError as error:
        raise typed_error(error) from None
    return out
