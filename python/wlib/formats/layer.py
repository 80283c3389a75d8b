"""One INT4 layer of a checkpoint, and the pieces all formats share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from .. import layout
from ..errors import check_dtype, refuse
from ..int4fp8 import Int4Weight
from ..nn import Int4Fp8Linear

WHERE = "wlib.formats"
OFFSET = 0x88  # codes stored plus 8: the top bit of each nibble is flipped
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_CHANNEL_FACTORS = 32


@dataclass(frozen=True, eq=False)
class Int4Layer:
    """A linear layer as a checkpoint holds it.

    Attributes:
        weight: the weight [N, K].
        bias: None or floating point [N].
        k_permutation: None, or int32 [K]: column j of `weight` belongs to input feature
            k_permutation[j] ("act order", where a group's columns are not neighbours).
        scale_error: largest relative error that rounding to `weight`'s BF16 scales brought to a
            scale of the checkpoint; 0 if none was rounded.
    """

    weight: Int4Weight
    bias: Tensor | None = None
    k_permutation: Tensor | None = None
    scale_error: float = 0.0

    def dequantize(self) -> Tensor:
        """The weight in the order of the input features, float32 [N, K]."""
        values = self.weight.dequantize()
        if self.k_permutation is None:
            return values
        return torch.empty_like(values).index_copy_(1, self.k_permutation.long(), values)

    def linear(self) -> Int4Fp8Linear:
        """A module that computes with this layer."""
        return Int4Fp8Linear.from_weight(self.weight, self.bias, self.k_permutation)


class LayerTensors:
    """The tensors of one layer by their local names, taken with the checks they need."""

    def __init__(self, layer: str, tensors: Mapping[str, Tensor]) -> None:
        self.layer = layer
        self._tensors = tensors

    def find(
        self, field: str, dtypes: Iterable[torch.dtype], shape: Iterable[int | None] | None
    ) -> Tensor | None:
        """The tensor, None if there is none; TypeError or ValueError if it does not fit.

        Args:
            field: its local name.
            dtypes: what it may hold.
            shape: the sizes it must have; None stands for any.
        """
        tensor = self._tensors.get(field)
        if tensor is None:
            return None
        check_dtype(WHERE, f"{self.layer}.{field}", tensor, *dtypes)
        if shape is None:
            return tensor
        sizes = ["*" if size is None else size for size in shape]
        fits = len(sizes) == tensor.dim() and all(
            size in ("*", got) for size, got in zip(sizes, tensor.shape, strict=True)
        )
        if not fits:
            self.refuse(f"shape [{', '.join(map(str, sizes))}]", list(tensor.shape), field)
        return tensor

    def take(
        self, field: str, dtypes: Iterable[torch.dtype], shape: Iterable[int | None] | None
    ) -> Tensor:
        """As `find`, with ValueError if there is none."""
        tensor = self.find(field, dtypes, shape)
        if tensor is None:
            self.refuse(f"a tensor '{field}'", sorted(self._tensors), field)
        return tensor

    def bias(self, n: int) -> Tensor | None:
        """The layer's bias [N], if it has one."""
        return self.find("bias", FLOATS, (n,))

    def groups(self, scale: Tensor, k: int, group_size: int | None, field: str) -> int:
        """The group size that scales [N, K/G] stand for.

        ValueError unless it divides K, is one a kernel serves, and is `group_size`, in which -1
        stands for K and None for any.
        """
        if 0 in scale.shape:
            self.refuse("scales of a weight that is not empty", list(scale.shape), field)
        count = scale.shape[1]
        size = k // count if k % count == 0 else 0
        layout.check_group_size(f"{WHERE}: {self.layer}.{field}", k, size)
        if group_size not in (None, size, -1 if size == k else None):
            self.refuse(f"groups of {group_size} columns", f"{size} of k={k}", field)
        return size

    def refuse(self, expected: str, got: object, field: str) -> NoReturn:
        """Raise ValueError naming the tensor."""
        refuse(WHERE, expected, got, f"{self.layer}.{field}")


def unpack_nibbles(packed: Tensor) -> Tensor:
    """int32 [R, C] -> uint8 [R, 8C], 0..15; the lowest nibble comes first."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=2).flatten(1)


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 [R, 2C], 0..15 -> uint8 [R, C]; low nibble = even column."""
    return (values[:, 0::2] | values[:, 1::2] << 4).contiguous()


def fold_scales(
    scale: Tensor, tensors: LayerTensors, field: str
) -> tuple[Tensor, Tensor | None, float]:
    """Scales [N, K/G] of any floating dtype as BF16 group scales times a float32 factor per row.

    BF16 keeps 8 bits of a significand, float16 has 11. Scales BF16 holds exactly are kept. A row
    of one group becomes 1 times its scale, exactly. Any other row takes, of 32 factors in [1, 2),
    the one that makes the squared error of its rounded scales least: about 0.13 % (RMS) at 32
    groups instead of 0.17 %.

    Returns:
        group_scale bfloat16 [N, K/G], channel_scale None or float32 [N], and the largest relative
        error of a product of the two.

    Raises:
        ValueError: a scale is NaN or Inf, or beyond BF16.
    """
    exact = scale.float()
    rounded = exact.bfloat16()
    if not rounded.isfinite().all():
        tensors.refuse("finite scales within BF16", "NaN, Inf or more", field)
    if torch.equal(rounded.float(), exact):
        return rounded, None, 0.0
    if exact.shape[1] == 1:
        return torch.ones_like(rounded), exact[:, 0].clone(), 0.0
    best, channel = rounded, torch.ones_like(exact[:, 0])
    least = (rounded.float() - exact).square().sum(dim=1)
    for step in range(1, _CHANNEL_FACTORS):
        factor = 2 ** (step / _CHANNEL_FACTORS)
        trial = (exact / factor).bfloat16()
        error = (trial.float() * factor - exact).square().sum(dim=1)
        better = error < least
        least = torch.where(better, error, least)
        channel = torch.where(better, factor, channel)
        best = torch.where(better[:, None], trial, best)
    return best, channel, scale_error(best.double() * channel.double()[:, None], exact)


def scale_error(got: Tensor, exact: Tensor) -> float:
    """Largest relative difference of two tensors of scales; equal ones count 0, zeros included."""
    difference = (got.double() - exact.double()).abs()
    relative = torch.where(difference == 0, 0, difference / exact.double().abs())
    return float(relative.max())


def whole_scale(weight: Int4Weight) -> Tensor:
    """group_scale times channel_scale, float64 [N, K/G], which holds the product exactly."""
    scale = weight.group_scale.double()
    channel = weight.channel_scale
    return scale if channel is None else scale * channel.double()[:, None]


def round_scales(weight: Int4Weight, dtype: torch.dtype, layer: str) -> tuple[Tensor, float]:
    """The scales [N, K/G] in the dtype another format stores, and their largest relative error.

    Raises:
        ValueError: a scale is beyond that dtype, or vanishes in it.
    """
    exact = whole_scale(weight)
    rounded = exact.to(dtype)
    if not rounded.isfinite().all() or ((rounded == 0) & (exact != 0)).any():
        low, high = float(exact.abs().min()), float(exact.abs().max())
        refuse(WHERE, f"scales within {dtype}", f"{low:.3g} to {high:.3g}", f"{layer} scales")
    return rounded, scale_error(rounded, exact)


def integer_zeros(weight: Int4Weight, layer: str) -> Tensor:
    """The zero points plus 8, uint8 [N, K/G]; 8 where the weight has none.

    Raises:
        ValueError: one is no integer from -8 to 7.
    """
    if weight.zero_point is None:
        return torch.full_like(weight.group_scale, 8, dtype=torch.uint8)
    zeros = weight.zero_point + 8
    if not ((zeros == zeros.round()) & (zeros >= 0) & (zeros <= 15)).all():
        refuse(WHERE, "zero points that are integers from -8 to 7", "others", f"{layer} zero_point")
    return zeros.to(torch.uint8)


def sort_groups(
    codes: Tensor, g_idx: Tensor, groups: int, tensors: LayerTensors, field: str
) -> tuple[Tensor, Tensor | None]:
    """Bring the columns of each group together.

    Args:
        codes: uint8 [N, K/2], two codes per byte.
        g_idx: int32 [K], the group of each column.
        groups: how many there are.

    Returns:
        The codes in the new order, and k_permutation int32 [K] or None if the order is the same.

    Raises:
        ValueError: the groups are not 0..groups-1, each of as many columns.
    """
    k = len(g_idx)
    valid = bool(((g_idx >= 0) & (g_idx < groups)).all())
    if not valid or (g_idx.bincount(minlength=groups) != k // groups).any():
        tensors.refuse(f"{k // groups} columns in each of {groups} groups", "other counts", field)
    if (g_idx.diff() >= 0).all():
        return codes, None
    order = g_idx.argsort(stable=True)
    values = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
    return pack_nibbles(values.index_select(1, order)), order.to(torch.int32)


def unsort_groups(layer: Int4Layer) -> tuple[Tensor, Tensor]:
    """The inverse of `sort_groups`: codes uint8 [N, K/2] by input feature, and g_idx int32 [K]."""
    weight = layer.weight
    groups = torch.arange(weight.k, dtype=torch.int32) // weight.group_size
    if layer.k_permutation is None:
        return weight.codes, groups
    place = layer.k_permutation.long().argsort()
    values = torch.stack((weight.codes & 15, weight.codes >> 4), dim=2).flatten(1)
    return pack_nibbles(values.index_select(1, place)), groups[place]
