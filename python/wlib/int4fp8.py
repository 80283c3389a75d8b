"""INT4 weights times FP8 activations: formats, quantisers and the functional API.

The format follows FireQ (arXiv 2505.20839): signed INT4 codes with one scale per group of columns,
activations in E4M3 with one scale per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from . import (
    _load,  # noqa: F401  registers torch.ops.wlib
    layout,
)
from .errors import check_device, check_dtype, check_shape, refuse, typed_error
from .group_scale import ScaleGrid, choose_scale, round_codes

_WEIGHT = "wlib.Int4Weight"
_QUANTIZE = "wlib.Int4Weight.quantize"
_INTERLEAVE = "wlib.Int4Weight.interleave"
_SHARD = "wlib.Int4Weight.shard"
_PACKED = "wlib.PackedInt4Weight"
_GEMM = torch.ops.wlib.int4fp8_gemm.default
_GEMM_OUT = torch.ops.wlib.int4fp8_gemm.out

Activation = Literal["none", "silu_mul"]  # what int4fp8_gemm can apply to its outputs


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """A weight [N, K] as signed INT4 codes with scales per group of G columns.

    Attributes:
        codes: uint8 [N, K/2]; two int4 two's complement per byte, low nibble = even k; -8..7.
        group_scale: bfloat16 [N, K/G]; G follows from the shapes.
        zero_point: None or floating point [N, K/G], kept as float32; in units of the codes.
        channel_scale: None or float32 [N].

    G is 32, 64, a multiple of 128, or K itself if 32 divides it. All tensors share one device.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape, a device or the group size is none of the above.
    """

    codes: Tensor
    group_scale: Tensor
    zero_point: Tensor | None = None
    channel_scale: Tensor | None = None

    def __post_init__(self) -> None:
        check_dtype(_WEIGHT, "codes", self.codes, torch.uint8)
        check_dtype(_WEIGHT, "group_scale", self.group_scale, torch.bfloat16)
        if self.codes.dim() != 2 or self.codes.numel() == 0:
            refuse(_WEIGHT, "codes of shape [N, K/2]", list(self.codes.shape), "codes")
        groups = self.group_scale.shape[-1] if self.group_scale.dim() == 2 else 0
        if groups == 0 or len(self.group_scale) != self.n or self.k % groups:
            expected = f"group_scale of shape [{self.n}, K/G] with K={self.k}"
            refuse(_WEIGHT, expected, list(self.group_scale.shape), "group_scale")
        layout.check_group_size(_WEIGHT, self.k, self.group_size)
        if self.zero_point is not None:
            floats = (torch.float32, torch.float16, torch.bfloat16)
            check_dtype(_WEIGHT, "zero_point", self.zero_point, *floats)
            check_shape(_WEIGHT, "zero_point", self.zero_point, self.group_scale.shape)
            object.__setattr__(self, "zero_point", self.zero_point.float())
        if self.channel_scale is not None:
            check_dtype(_WEIGHT, "channel_scale", self.channel_scale, torch.float32)
            check_shape(_WEIGHT, "channel_scale", self.channel_scale, [self.n])
        for name in ("group_scale", "zero_point", "channel_scale"):
            tensor = getattr(self, name)
            if tensor is not None:
                check_device(_WEIGHT, name, tensor, self.codes.device)

    @property
    def n(self) -> int:
        """Output features."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Input features."""
        return self.codes.shape[1] * 2

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.k // self.group_scale.shape[1]

    @classmethod
    def quantize(cls, w: Tensor, group_size: int = 128, *, clip_search: bool = False) -> Int4Weight:
        """Round a weight to the nearest INT4 code, group by group, without zero points.

        Args:
            w: float32, float16, bfloat16 or float64 [N, K], finite.
            group_size: columns that share a scale; must divide K.
            clip_search: choose for each group the scale, absmax/13.5 to absmax/7, that makes the
                squared error least; otherwise the scale is absmax/8 and only codes above 7 clip.

        Raises:
            TypeError: w is not floating point.
            ValueError: w is not a finite, non-empty matrix, or group_size does not fit K.

        Warns:
            ScaleUnderflowWarning: a scale lies below BF16's smallest normal value.
        """
        floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        check_dtype(_QUANTIZE, "w", w, *floats)
        if w.dim() != 2 or w.numel() == 0:
            refuse(_QUANTIZE, "w of shape [N, K]", list(w.shape), "w")
        n, k = w.shape
        layout.check_group_size(_QUANTIZE, k, group_size)
        groups = w.detach().float().view(n, -1, group_size)
        absmax = groups.abs().amax(dim=2)
        if not absmax.isfinite().all():  # amax passes NaN and Inf on
            count = int((~groups.isfinite()).sum())
            refuse(_QUANTIZE, "w finite in float32", f"{count} NaN or Inf", "w")
        grid = ScaleGrid.fit(absmax)
        scale = choose_scale(groups, "mse" if clip_search else "absmax/8", grid)
        return cls.from_codes(round_codes(groups, scale[..., None]).view(n, k), scale, grid)

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor, grid: ScaleGrid) -> Int4Weight:
        """The weight of integers -8..7 [N, K] of any dtype and scales float32 [N, K/G] of grid."""
        nibbles = codes.to(torch.int8).view(torch.uint8) & 15
        group_scale, channel_scale = grid.split(scale)
        return cls(nibbles[:, 0::2] | nibbles[:, 1::2] << 4, group_scale, None, channel_scale)

    @classmethod
    def interleave(cls, gate: Int4Weight, up: Int4Weight) -> Int4Weight:
        """The weight [2 N, K] whose rows are those of gate and up in turn, for "silu_mul".

        Args:
            gate, up: [N, K] with the same group size, on one device.

        Raises:
            ValueError: the two do not fit.
        """
        sizes = [up.n, up.k, up.group_size]
        if sizes != [gate.n, gate.k, gate.group_size]:
            expected = f"up with [n, k, group_size] = {[gate.n, gate.k, gate.group_size]}"
            refuse(_INTERLEAVE, expected, sizes, "up")
        check_device(_INTERLEAVE, "up", up.codes, gate.codes.device)

        def in_turn(name: str, default: float) -> Tensor | None:
            a, b = getattr(gate, name), getattr(up, name)
            if a is None and b is None:
                return None
            a = torch.full_like(b, default) if a is None else a
            b = torch.full_like(a, default) if b is None else b
            return torch.stack((a, b), dim=1).flatten(0, 1)

        codes, group_scale = in_turn("codes", 0), in_turn("group_scale", 0)
        assert codes is not None
        assert group_scale is not None
        return cls(codes, group_scale, in_turn("zero_point", 0), in_turn("channel_scale", 1))

    def dequantize(self) -> Tensor:
        """The weight this object stands for, float32 [N, K].

        (code - zero_point) * group_scale * channel_scale, rounded in this order.
        """
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), dim=2)
        values = ((nibbles ^ 8).float() - 8).view(self.n, -1, self.group_size)
        if self.zero_point is not None:
            values = values - self.zero_point[..., None]
        values = (values * self.group_scale[..., None].float()).view(self.n, self.k)
        return values if self.channel_scale is None else values * self.channel_scale[:, None]

    def shard(self, dim: int, rank: int, world: int) -> Int4Weight:
        """One of `world` equal parts, for tensor parallelism; pack it afterwards.

        Args:
            dim: 0 to divide the rows (output features), 1 to divide the columns, between groups.
            rank: which part, 0 to world - 1.
            world: how many parts; must divide N or the groups of a row.

        Returns:
            [N/world, K] or [N, K/world], sharing memory with this weight where it can.

        Raises:
            ValueError: dim, rank or world does not fit.
        """
        if dim not in (0, 1):
            refuse(_SHARD, "dim of 0 (rows) or 1 (columns)", dim, "dim")
        parts, what = ((self.n, "rows"), (self.k // self.group_size, "groups of columns"))[dim]
        if world < 1 or parts % world:
            refuse(_SHARD, f"world to divide {parts} {what}", world, "world")
        if not 0 <= rank < world:
            refuse(_SHARD, f"rank from 0 to {world - 1}", rank, "rank")

        def part(tensor: Tensor) -> Tensor:
            return tensor.chunk(world, dim)[rank].contiguous()

        zero_point, channel_scale = self.zero_point, self.channel_scale
        if channel_scale is not None and dim == 0:  # a row's factor goes with every part of it
            channel_scale = part(channel_scale)
        return Int4Weight(
            codes=part(self.codes),
            group_scale=part(self.group_scale),
            zero_point=None if zero_point is None else part(zero_point),
            channel_scale=channel_scale,
        )

    def pack(self) -> PackedInt4Weight:
        """The same weight in the layout the kernels read, on the same device."""
        return PackedInt4Weight(
            data=layout.pack(self.codes, self.group_scale, self.zero_point, self.channel_scale),
            n=self.n,
            k=self.k,
            group_size=self.group_size,
            has_zero_point=self.zero_point is not None,
            has_channel_scale=self.channel_scale is not None,
        )


@dataclass(frozen=True, eq=False)
class PackedInt4Weight:
    """An INT4 weight [N, K] in the layout the kernels read.

    Attributes:
        data: uint8 [ceil(N/64), bytes per row block], contiguous (see `wlib.layout`).
        n, k: output and input features.
        group_size: columns that share a scale.
        has_zero_point, has_channel_scale: which optional tensors the weight was packed with.
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
        shape = layout.packed_shape(self.n, self.k, self.group_size, self.has_zero_point)
        check_dtype(_PACKED, "data", self.data, torch.uint8)
        check_shape(_PACKED, "data", self.data, shape)

    def unpack(self) -> Int4Weight:
        """The exact inverse of `Int4Weight.pack`."""
        codes, group_scale, zero_point, channel_scale = layout.unpack(
            self.data, self.n, self.k, self.group_size, self.has_zero_point
        )
        return Int4Weight(
            codes, group_scale, zero_point, channel_scale if self.has_channel_scale else None
        )

    def to(self, device: torch.device | str) -> PackedInt4Weight:
        """The same weight on another device."""
        return replace(self, data=self.data.to(device))


def int4fp8_gemm(
    xq: Tensor,
    p: PackedInt4Weight,
    xs: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    out_scale: Tensor | None = None,
    x_sums: Tensor | None = None,
    prefetch_weight: bool = False,
) -> Tensor:
    """Multiply FP8 activations with a packed INT4 weight (FireQ, arXiv 2505.20839).

    v[m, n] = xs[m] * channel_scale[n] * sum_g group_scale[n, g]
              * sum_{k in g} xq[m, k] * (code[n, k] - zero_point[n, g]) + bias[n]

    accumulated in float32, followed in this order by what is asked for:

    - activation "silu_mul": v[m, j] = silu(v[m, 2j]) * v[m, 2j + 1], for a weight whose rows are
      gates and ups in turn;
    - the residual is added;
    - for float8_e4m3fn, v is divided by out_scale and saturated at 448.

    Rounded once. A NaN or Inf in an operand reaches exactly the rows or columns of y it takes part
    in; Inf may arrive there as NaN.

    Args:
        xq: float8_e4m3fn [..., K].
        p: the packed weight [N, K], on the device of xq.
        xs: float32 [...], scale of each token.
        bias: None, or float32, bfloat16 or float16 [N].
        out_dtype: bfloat16, float16, float32 or float8_e4m3fn; of no effect if `out` is given.
        out: tensor [..., N'] to write to; its dtype is the output dtype.
        residual: None, or float32, bfloat16 or float16 [..., N']; may be `out`, for y += x W^T.
        activation: "none" or "silu_mul", which needs an even N.
        out_scale: float32 [], the scale of float8_e4m3fn outputs, and only of these.
        x_sums: None, or float32 [ceil(K/s), M rounded up to a multiple of 4]: what the codes of
            each of the M tokens add up to in groups of s = min(group_size, 128, K) columns. Spares
            the op this sum where p has zero points and M is large.
        prefetch_weight: allow a kernel for few tokens to fetch the weight while the kernel launched
            before it on the stream still runs. Only if that one does not write the weight: right
            behind `fp8_quantize`, say, but not behind an update of the weight.

    Returns:
        y [..., N'] of out_dtype, or `out`; N' is N, or N / 2 with "silu_mul".

    Raises:
        TypeError: an argument has the wrong dtype, or p is not packed.
        ValueError: a shape, a device, the group size, the activation or an alignment does not fit,
            or `out` and the residual overlap without being the same.
        NotImplementedError: no kernel serves the device of xq.
    """
    if not isinstance(p, PackedInt4Weight):
        refuse("wlib.int4fp8_gemm", "p to be a PackedInt4Weight", type(p).__name__, "p", TypeError)
    if xq.dim() == 0 or xq.shape[-1] != p.k:  # the op takes K from x: padded, two K may pack alike
        expected = f"x of shape [*, {p.k}] to match k={p.k}"
        refuse("wlib::int4fp8_gemm", expected, list(xq.shape), "x")
    # An argument left at its default costs nothing: a small matrix takes as long as its call.
    options: dict[str, Any] = {"n": p.n, "group_size": p.group_size}
    if bias is not None:
        options["bias"] = bias
    if residual is not None:
        options["residual"] = residual
    if activation != "none":
        options["activation"] = activation
    if out_scale is not None:
        options["out_scale"] = out_scale
    if x_sums is not None:
        options["x_sums"] = x_sums
    if prefetch_weight:
        options["prefetch_weight"] = True
    try:
        if out is not None:
            _GEMM_OUT(xq, p.data, xs, out=out, **options)
            return out
        if out_dtype is not torch.bfloat16:
            options["out_dtype"] = out_dtype
        y: Tensor = _GEMM(xq, p.data, xs, **options)
        return y
    except ValueError as error:
        raise typed_error(error) from None
