"""Linear layers whose weight is low rank plus sparse (SLTrain, arXiv 2406.02214).

W = scale * B A + S with S nonzero on a fixed random support. Neither W nor its gradient is ever
formed in memory: the sparse part multiplies the activations from its values, and only the products
at their places are kept of the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import check_device, check_dtype, check_shape, refuse, typed_error

TILE = 128  # rows and columns of a tile
_POSITIONS = TILE * TILE
_SUPPORT = "wlib.SparseSupport"
_LINEAR = "wlib.sparse_lowrank_linear"


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE), -(-columns // TILE)


@dataclass(frozen=True)
class SparseSupport:
    """Where a sparse matrix [rows, columns] has values, in two bytes per value.

    The matrix is cut into tiles of 128 x 128, numbered row by row; values stand tile by tile and
    within a tile row by row. The constructor checks everything, once: the ops that take the two
    tensors rely on it.

    Attributes:
        positions: int16 [values], row * 128 + column within the value's tile, ascending in a tile.
        offsets: int64 [tiles + 1], number of the first value of each tile, and of all values.
        rows, columns: of the matrix.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape or device does not fit; offsets do not start at 0, end at the number of
            values and ascend; a position is outside its tile or the matrix, out of order, or twice
            there.
    """

    positions: Tensor
    offsets: Tensor
    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if not 1 <= size < 2**31 - TILE:
                refuse(_SUPPORT, f"{name} from 1 to 2^31 - 129", size, name)
        check_dtype(_SUPPORT, "positions", self.positions, torch.int16)
        check_dtype(_SUPPORT, "offsets", self.offsets, torch.int64)
        check_shape(_SUPPORT, "positions", self.positions, [self.positions.numel()])
        tiles = _tiles(self.rows, self.columns)
        check_shape(_SUPPORT, "offsets", self.offsets, [tiles[0] * tiles[1] + 1])
        check_device(_SUPPORT, "offsets", self.offsets, self.positions.device)
        if self.positions.device.type != "meta":
            self._check_offsets()
            self._check_positions()

    def _check_offsets(self) -> None:
        count = self.positions.numel()
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        if (first, last) != (0, count):
            refuse(_SUPPORT, f"offsets from 0 to {count}", f"{first} to {last}", "offsets")
        if bool((self.offsets.diff() < 0).any()):
            tile = int((self.offsets.diff() < 0).nonzero()[0])
            refuse(_SUPPORT, "offsets that ascend", f"less after tile {tile}", "offsets")

    def _check_positions(self) -> None:
        if self.positions.numel() == 0:
            return
        tile = self._tile_of_values()
        position = self.positions.long()
        width = _tiles(self.rows, self.columns)[1]
        row = tile // width * TILE + position // TILE
        column = tile % width * TILE + position % TILE
        outside = (position < 0) | (position >= _POSITIONS)
        outside |= (row >= self.rows) | (column >= self.columns)
        self._refuse_first(outside, tile, f"positions within tile and matrix {self.shape}")
        step = torch.where(tile.diff() == 0, position.diff(), 1)
        pad = torch.zeros(1, dtype=torch.bool, device=step.device)
        self._refuse_first(torch.cat((pad, step == 0)), tile, "positions that differ in a tile")
        self._refuse_first(torch.cat((pad, step < 0)), tile, "positions that ascend in a tile")

    def _refuse_first(self, wrong: Tensor, tile: Tensor, expected: str) -> None:
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            got = f"{int(self.positions[at])} at {at} in tile {int(tile[at])}"
            refuse(_SUPPORT, expected, got, "positions")

    def _tile_of_values(self) -> Tensor:
        """Number of the tile of every value, int64 [values]."""
        numbers = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff())

    @classmethod
    def from_indices(cls, indices: Tensor, rows: int, columns: int) -> tuple[SparseSupport, Tensor]:
        """The support at flat indices row * columns + column, as SLTrain keeps them.

        Args:
            indices: int64 [values] in any order, 0 to rows * columns - 1, none twice.
            rows, columns: of the matrix.

        Returns:
            The support, and int64 [values] the order in which it takes the values: values that go
            with `indices` become ``values[order]``.
        """
        check_dtype(_SUPPORT, "indices", indices, torch.int64)
        check_shape(_SUPPORT, "indices", indices, [indices.numel()])
        outside = (indices < 0) | (indices >= rows * columns)
        if bool(outside.any()):
            got = int(indices[outside][0])
            refuse(_SUPPORT, f"indices from 0 to {rows * columns - 1}", got, "indices")
        row, column = indices // columns, indices % columns
        down, across = _tiles(rows, columns)
        tile = row // TILE * across + column // TILE
        key, order = (tile * _POSITIONS + row % TILE * TILE + column % TILE).sort()
        twice = key.diff() == 0
        if bool(twice.any()):
            got = int(indices[order[1:][twice][0]])
            refuse(_SUPPORT, "indices that differ", f"{got} twice", "indices")
        counts = torch.bincount(key // _POSITIONS, minlength=down * across)
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls((key % _POSITIONS).to(torch.int16), offsets, rows, columns), order

    @classmethod
    def from_mask(cls, mask: Tensor) -> SparseSupport:
        """The support where `mask`, bool [rows, columns], is true."""
        check_dtype(_SUPPORT, "mask", mask, torch.bool)
        if mask.dim() != 2:
            refuse(_SUPPORT, "mask of shape [rows, columns]", list(mask.shape), "mask")
        return cls.from_indices(mask.flatten().nonzero()[:, 0], *mask.shape)[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.rows, self.columns

    @property
    def count(self) -> int:
        """How many values the matrix has."""
        return self.positions.numel()

    def indices(self) -> Tensor:
        """Flat indices row * columns + column of the values, int64 [values], in their order."""
        tile, position = self._tile_of_values(), self.positions.long()
        width = _tiles(self.rows, self.columns)[1]
        row = tile // width * TILE + position // TILE
        return row * self.columns + tile % width * TILE + position % TILE

    def dense(self, values: Tensor) -> Tensor:
        """The matrix [rows, columns] with these values [values], in their dtype; for inspection."""
        check_shape(_SUPPORT, "values", values, [self.count])
        flat = values.new_zeros(self.rows * self.columns)
        return flat.index_put((self.indices(),), values).view(self.shape)

    def gather(self, matrix: Tensor) -> Tensor:
        """The values [values] of a matrix [rows, columns] at the support."""
        check_shape(_SUPPORT, "matrix", matrix, self.shape)
        return matrix.reshape(-1)[self.indices()]

    def to(self, device: torch.device | str) -> SparseSupport:
        """The same support on another device."""
        places = self.positions.to(device), self.offsets.to(device)
        return replace(self, positions=places[0], offsets=places[1])


def sparse_support(rows: int, columns: int, density: float, seed: int = 0) -> SparseSupport:
    """A random support: int(density * rows * columns) places, every choice equally likely.

    The same for the same arguments, whatever the device it is moved to; made in memory of the size
    of the support.

    Args:
        rows, columns: of the matrix.
        density: share of the places that have a value, 0 to 1.
        seed: of the generator.

    Raises:
        ValueError: density or a size is out of range.
    """
    if not 0.0 <= density <= 1.0:
        refuse("wlib.sparse_support", "density from 0 to 1", density, "density")
    total = rows * columns
    count = int(density * total)
    generator = torch.Generator().manual_seed(seed)
    if count > total // 2:
        chosen = torch.randperm(total, generator=generator)[:count]
    else:
        chosen = torch.empty(0, dtype=torch.int64)
        while len(chosen) < count:  # the distinct ones of draws are a random subset of their size
            more = torch.randint(total, (count + count // 8 + 8,), generator=generator)
            chosen = torch.cat((chosen, more)).unique()
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:count]]
    return SparseSupport.from_indices(chosen, rows, columns)[0]


class _Layer(torch.autograd.Function):
    """The layer as one node, so that both parts of dx meet in one pass over it.

    x A^T is an output, too: saved for dB, and the way for gradients of gradients.
    """

    @staticmethod
    def forward(
        x: Tensor,
        b: Tensor,
        a: Tensor,
        values: Tensor,
        bias: Tensor | None,
        positions: Tensor,
        offsets: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        reduced = x.reshape(-1, x.shape[-1]) @ a.T
        low_rank = _scaled(reduced, b.T, scale).view(*x.shape[:-1], len(b))
        y: Tensor = torch.ops.wlib.tile_sparse_matmul(
            x, values, positions, offsets, len(b), x.shape[-1], False, low_rank, bias
        )
        return y, reduced

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, b, a, values, _, positions, offsets, ctx.scale = inputs
        ctx.save_for_backward(x, b, a, values, positions, offsets, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, b, a, values, positions, offsets, reduced = ctx.saved_tensors
        dy, d_reduced = grads
        dy = x.new_zeros(*x.shape[:-1], len(b)) if dy is None else dy.contiguous()
        rows = dy.reshape(-1, len(b))
        through = _scaled(rows, b, ctx.scale)  # the gradient of x A^T, [tokens, rank]
        through = through if d_reduced is None else through + d_reduced
        found: list[Tensor | None] = [None] * 8
        if ctx.needs_input_grad[0]:
            found[0] = torch.ops.wlib.tile_sparse_matmul(
                dy, values, positions, offsets, len(b), x.shape[-1], True,
                (through @ a).view(x.shape),
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            found[1] = _scaled(rows.T, reduced, ctx.scale)
        if ctx.needs_input_grad[2]:
            found[2] = through.T @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[3]:
            found[3] = torch.ops.wlib.tile_sampled_matmul(dy, x, positions, offsets, values.dtype)
        if ctx.needs_input_grad[4]:
            found[4] = rows.sum(0)
        return tuple(found)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a b, rounded once."""
    return torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


def sparse_lowrank_linear(
    x: Tensor,
    b: Tensor,
    a: Tensor,
    values: Tensor,
    support: SparseSupport | Tensor,
    scale: float = 1.0,
    bias: Tensor | None = None,
) -> Tensor:
    """y = x W^T + bias with W = scale * B A + S (SLTrain, arXiv 2406.02214).

    Forward: scale * (x A^T) B^T by torch's matmuls, to which the sparse product is added in float32
    before the result is rounded. Backward: dx = scale * (dy B) A + dy S likewise, dA and dB from
    the same chain, and of dW only the products at the support, summed over tokens in a fixed order.
    Under autocast x, A, B and the bias are cast to its dtype; values may stay in float32.

    Args:
        x: [..., K] float32, bfloat16 or float16, on the CPU also float64; copied if it is not
            contiguous.
        b: B [N, r] of the dtype of x.
        a: A [r, K] of the dtype of x.
        values: [values] of S, any of these dtypes; float64 goes with float64, and 16-bit x rounds
            them to its dtype.
        support: of S, [N, K]; or SLTrain's own flat indices n * K + k, int64 [values], which are
            sorted in every call: make a `SparseSupport` of them once.
        scale: of the product B A; in SLTrain alpha / r.
        bias: None, or [N] of the dtype of x.

    Returns:
        [..., N] in the dtype of x; differentiable in x, B, A, values and bias, twice.

    Raises:
        TypeError: a dtype is none of these or differs from that of x.
        ValueError: a shape or device does not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    if a.dim() != 2 or b.dim() != 2:
        wrong, name = (a, "a") if a.dim() != 2 else (b, "b")
        refuse(_LINEAR, f"{name} of two dimensions", list(wrong.shape), name)
    if isinstance(support, Tensor):
        check_shape(_LINEAR, "values", values, [support.numel()])
        support, order = SparseSupport.from_indices(support, b.shape[0], a.shape[1])
        values = values[order]
    return _linear(x, b, a, values, support.positions, support.offsets, support.shape, scale, bias)


def _linear(
    x: Tensor,
    b: Tensor,
    a: Tensor,
    values: Tensor,
    positions: Tensor,
    offsets: Tensor,
    shape: tuple[int, int],
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    """`sparse_lowrank_linear` on a support known to be right, as modules and compilers call it."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, b, a = x.to(dtype), b.to(dtype), a.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rank = a.shape[0]
    for name, factor, size in (("b", b, (shape[0], rank)), ("a", a, (rank, shape[1]))):
        check_dtype(_LINEAR, name, factor, x.dtype)
        check_shape(_LINEAR, name, factor, size)
        check_device(_LINEAR, name, factor, x.device)
    if x.dim() < 1 or x.shape[-1] != shape[1]:
        refuse(_LINEAR, f"x of shape [..., {shape[1]}]", list(x.shape), "x")
    try:
        y: Tensor
        y, _ = _Layer.apply(  # type: ignore[no-untyped-call]
            x.contiguous(), b, a, values.contiguous(), bias, positions, offsets, scale
        )
    except ValueError as error:
        raise typed_error(error) from None
    return y
