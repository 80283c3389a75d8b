"""FP4 for training matmuls: block formats, quantisers and the functional API.

Formats: `mxfp4` (OCP MX: E2M1 codes, one E8M0 scale per 32 values), `nvfp4` (E2M1 codes, one E4M3
scale per 16 values, one float32 scale per tensor), and FP8 carriers of mxfp4, which hold the same
values with one power of two per row. Algorithms: Quartet (arXiv 2505.14669), "Training LLMs with
MXFP4" (2502.20586), Quartet II (2601.22813), Four over Six (2512.02010), NVIDIA's NVFP4 recipe
(2509.25149).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ._block_scaled import scale_shape
from .errors import check_device, check_dtype, check_shape, refuse, typed_error

_QUANTIZE = "wlib.fp4_quantize"
_MATMUL = "wlib.fp4_matmul"
_REQUANTIZE = "wlib.fp4_requantize_t"
_TENSOR = "wlib.FP4Tensor"
_AXES: dict[int | str, str] = {-1: "rows", 1: "rows", 0: "columns", "both": "both"}
_EMIT = ("fp4", "carrier_e4m3", "carrier_e5m2")
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, eq=False)
class FP4Tensor:
    """A matrix [R, C] in FP4: packed codes, an FP8 carrier of the same values, or both.

    Attributes:
        format: "mxfp4" or "nvfp4".
        codes: uint8 [R, C/2], two E2M1 codes per byte, low nibble = even column; or None.
        scales: mxfp4 uint8 [R, C/32] (E8M0), nvfp4 float8_e4m3fn [R, C/16]; if swizzled, rows are
            padded to 128 and scales to 4, in the 128x4 order of Blackwell's MMAs; or None.
        global_scale: float32 scalar of nvfp4, else None.
        carrier: float8_e4m3fn or float8_e5m2 [R, C], or None.
        row_scale: float32 [R], powers of two that go with the carrier, or None.
        mask: uint8 [R, C/8], bit i of byte j: |value / scale| < 6 at column 8 j + i; or None.
        swizzled: whether `scales` has the 128x4 order.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape, a device or a combination is none of the above.
    """

    format: str
    codes: Tensor | None = None
    scales: Tensor | None = None
    global_scale: Tensor | None = None
    carrier: Tensor | None = None
    row_scale: Tensor | None = None
    mask: Tensor | None = None
    swizzled: bool = False

    def __post_init__(self) -> None:
        if self.format not in ("mxfp4", "nvfp4"):
            refuse(_TENSOR, "format to be one of 'mxfp4', 'nvfp4'", repr(self.format), "format")
        if self.codes is None and self.carrier is None:
            refuse(_TENSOR, "codes or a carrier", "neither", "codes")
        if self.codes is not None:
            self._check_packed(self.codes, self.scales)
        if self.carrier is not None:
            check_dtype(_TENSOR, "carrier", self.carrier, torch.float8_e4m3fn, torch.float8_e5m2)
            check_shape(_TENSOR, "carrier", self.carrier, self.shape)
            check_dtype(_TENSOR, "row_scale", self.row_scale, torch.float32)  # type: ignore[arg-type]
            check_shape(_TENSOR, "row_scale", self.row_scale, self.shape[:1])  # type: ignore[arg-type]
        for field in fields(self):
            tensor = getattr(self, field.name)
            if isinstance(tensor, Tensor):
                check_device(_TENSOR, field.name, tensor, self.device)

    def _check_packed(self, codes: Tensor, scales: Tensor | None) -> None:
        check_dtype(_TENSOR, "codes", codes, torch.uint8)
        if codes.dim() != 2 or codes.shape[1] * 2 % self.block_size:
            expected = f"codes of shape [R, C/2] with C a multiple of {self.block_size}"
            refuse(_TENSOR, expected, list(codes.shape), "codes")
        mx = self.format == "mxfp4"
        check_dtype(_TENSOR, "scales", scales, torch.uint8 if mx else torch.float8_e4m3fn)  # type: ignore[arg-type]
        rows, per_row = self.shape[0], self.shape[1] // self.block_size
        shape = scale_shape(rows, per_row) if self.swizzled else (rows, per_row)
        check_shape(_TENSOR, "scales", scales, shape)  # type: ignore[arg-type]
        if not mx:
            check_dtype(_TENSOR, "global_scale", self.global_scale, torch.float32)  # type: ignore[arg-type]
            check_shape(_TENSOR, "global_scale", self.global_scale, [])  # type: ignore[arg-type]

    @property
    def _values(self) -> Tensor:
        tensor = self.carrier if self.codes is None else self.codes
        assert tensor is not None
        return tensor

    @property
    def shape(self) -> torch.Size:
        """[R, C]."""
        rows, width = self._values.shape
        return torch.Size((rows, width if self.codes is None else width * 2))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._values.device

    @property
    def block_size(self) -> int:
        """Values along a row that share a scale."""
        return 32 if self.format == "mxfp4" else 16

    def dequantize(self) -> Tensor:
        """The values this object stands for, float32 [R, C], in the rotated domain.

        code * scale, of nvfp4 times global_scale. With scale_rule "three_quarters" they are 3/4 of
        what was quantised: the 4/3 of each operand belongs into `alpha` of `fp4_matmul`.
        """
        if self.codes is None:
            assert self.carrier is not None
            assert self.row_scale is not None
            return self.carrier.float() * self.row_scale[:, None]
        rows, columns = self.shape
        magnitudes = torch.tensor(_E2M1, device=self.device)
        table = torch.cat((magnitudes, -magnitudes))
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), dim=2).view(rows, columns)
        blocks = table[nibbles.long()].view(rows, columns // self.block_size, self.block_size)
        values = (blocks * self._block_scales()[..., None]).view(rows, columns)
        return values if self.global_scale is None else values * self.global_scale

    def _block_scales(self) -> Tensor:
        """Scales as float32 [R, C / block_size]."""
        scales = row_major_scales(self)
        if self.format == "nvfp4":
            return scales.float()
        exponent = scales.int() - 127
        return torch.where(exponent == 128, torch.nan, torch.exp2(exponent.double())).float()


def row_major_scales(q: FP4Tensor) -> Tensor:
    """The scales of packed codes [R, C], one row per row; a copy where they are swizzled."""
    assert q.scales is not None
    if not q.swizzled:
        return q.scales
    rows, per_row = q.shape[0], q.shape[1] // q.block_size
    padded_rows, padded = q.scales.shape
    atoms = q.scales.view(torch.uint8).view(padded_rows // 128, padded // 4, 32, 4, 4)
    scales = atoms.permute(0, 3, 2, 1, 4).reshape(padded_rows, padded)
    return scales[:rows, :per_row].contiguous().view(q.scales.dtype)


def fp4_quantize(
    x: Tensor,
    format: str = "mxfp4",
    hadamard: int = 0,
    signs: Tensor | None = None,
    scale_rule: str | None = None,
    rounding: str = "nearest",
    seed: int | Tensor | None = None,
    *,
    offset: int = 0,
    square: bool = False,
    axis: int | str = -1,
    emit: Sequence[str] = ("fp4",),
    global_scale: Tensor | None = None,
    swizzle: str = "none",
    return_mask: bool = False,
    window: int | None = None,
) -> Any:
    """Rotate a matrix and quantise it to FP4.

    Args:
        x: float32, bfloat16 or float16 [R, C], unit stride along a row.
        format: "mxfp4" or "nvfp4".
        hadamard: 0, or the size 16, 32, 64 or 128 of the blocks along the quantised axis that are
            rotated first.
        signs: int8 [hadamard] or None; the values at negative ones are negated before the rotation.
        scale_rule: of mxfp4 "even" (default), "floor", "quest", "quest_floor" or "three_quarters",
            of nvfp4 "amax" (default) or "four_over_six"; see docs/numerics.md.
        rounding: "nearest", ties to even; "stochastic", up with the probability of the distance to
            the value below, which is unbiased where nothing clips ("three_quarters", "amax");
            "ms_eden" (nvfp4 with "amax"): codes to nearest, the scale of a block corrected by what
            that lost and rounded stochastically, unbiased over random `signs`.
        seed: of the random roundings: a number, or int64 [] or [2] on the device of x, the second
            one a step that counts uses. None for "nearest".
        offset: keeps the roundings of one seed and step apart, 0 to 2^30 - 1. Each bit is a
            function of seed, step, offset, orientation and place alone.
        square: nvfp4 with "amax" and "nearest": a scale is that of 16 x 16 values, so that a matrix
            and its transpose are quantised to the same values.
        axis: -1 to quantise along rows; 0 along columns, which gives the transposed matrix [C, R];
            "both" for a pair of the two. R and C are multiples of the block and of `hadamard`
            where they are the quantised axis.
        emit: "fp4" for codes and scales, "carrier_e4m3" or "carrier_e5m2" for an FP8 carrier.
        global_scale: float32 scalar of nvfp4; None to take it from the largest rotated magnitude.
        swizzle: "none", or "128x4" for scales in the order of Blackwell's MMAs.
        return_mask: also give the mask of the values that do not clip.
        window: how many binades the scales of a row may span below its largest one; smaller blocks
            are quantised with the smallest scale of the window. None: 15 or 29 with a carrier in
            E4M3 or E5M2, else any.

    Returns:
        FP4Tensor, or a pair of them for axis "both". A NaN or Inf makes the scale of its block NaN
        (after the rotation: of all blocks that it reached), and with it every value of the block.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device, a word or a combination does not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    if axis not in _AXES:
        refuse(_QUANTIZE, "axis of -1, 0 or 'both'", repr(axis), "axis")
    options = _options(_QUANTIZE, format, scale_rule, emit, swizzle, window)
    try:
        out = torch.ops.wlib.fp4_quantize(
            x,
            axis=_AXES[axis],
            hadamard=hadamard,
            signs=signs,
            global_scale=global_scale,
            mask=return_mask,
            square=square,
            rounding=rounding,
            seed=_seed(seed, x.device),
            offset=offset,
            **options,
        )
    except ValueError as error:
        raise typed_error(error) from None
    sides = [_collect(format, out[i : i + 6], global_scale, swizzle) for i in range(0, len(out), 6)]
    return sides[0] if len(sides) == 1 else tuple(sides)


def fp4_requantize_t(
    q: FP4Tensor,
    format: str = "mxfp4",
    hadamard: int = 0,
    signs: Tensor | None = None,
    scale_rule: str | None = None,
    rounding: str = "nearest",
    seed: int | Tensor | None = None,
    *,
    offset: int = 0,
    square: bool = False,
    emit: Sequence[str] = ("fp4",),
    global_scale: Tensor | None = None,
    swizzle: str = "none",
    return_mask: bool = False,
    window: int | None = None,
) -> FP4Tensor:
    """Dequantise, transpose, rotate and quantise again, without a copy of the values in between.

    Args:
        q: packed codes [R, C], scales not swizzled.
        format, hadamard, signs, scale_rule, rounding, seed, offset, square, emit, global_scale,
            swizzle, return_mask, window: of the result, as for `fp4_quantize`.

    Returns:
        FP4Tensor [C, R].

    Raises:
        TypeError, ValueError, NotImplementedError: as `fp4_quantize`.
    """
    if q.codes is None or q.scales is None or q.swizzled:
        refuse(_REQUANTIZE, "q with codes and scales in row-major order", "another", "q")
    try:
        out = torch.ops.wlib.fp4_requantize_t(
            q.codes,
            q.scales,
            q.global_scale,
            hadamard=hadamard,
            signs=signs,
            global_scale=global_scale,
            mask=return_mask,
            square=square,
            rounding=rounding,
            seed=_seed(seed, q.codes.device),
            offset=offset,
            **_options(_REQUANTIZE, format, scale_rule, emit, swizzle, window),
        )
    except ValueError as error:
        raise typed_error(error) from None
    return _collect(format, out, global_scale, swizzle)


def fp4_matmul(
    a: FP4Tensor,
    b: FP4Tensor,
    alpha: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
    mode: str = "auto",
) -> Tensor:
    """alpha * a.dequantize() @ b.dequantize().T, accumulated in float32 and rounded once.

    Args:
        a: [M, K].
        b: [N, K].
        alpha: factor of the result.
        out_dtype: bfloat16, float16 or float32.
        mode: "fold8": mxfp4 on FP8 tensor cores, from carriers if both operands have them, else
            from codes, whose scales may then span 27 binades in a row (on CUDA, a row that spans
            more or has a NaN sends the whole product to BF16 tensor cores); "bf16": codes on BF16
            tensor cores, for nvfp4 too; "exact32": mxfp4 codes, the sum of 32 products is exact,
            slow; "block_scaled": on Blackwell's FP4 tensor cores, packed operands of one format
            with scales in the 128x4 order, K in multiples of 32 and rows of the result in multiples
            of 16 bytes; "auto": "block_scaled" if both have that order and no carrier, else "fold8"
            if both are mxfp4, else "bf16".

    Returns:
        [M, N] of out_dtype.

    Raises:
        TypeError: out_dtype is none of the above, or an operand is no FP4Tensor.
        ValueError: shapes or devices do not fit, scales have another order than the mode's, or
            the mode does not serve the operands.
        NotImplementedError: no kernel serves the device, or, on CUDA, one operand is only a carrier
            while the other one has none or the mode is "bf16", or K is no multiple of 32.
    """
    for name, q in (("a", a), ("b", b)):
        if not isinstance(q, FP4Tensor):
            refuse(_MATMUL, f"{name} to be an FP4Tensor", type(q).__name__, name, TypeError)
    if mode == "auto":
        if all(q.swizzled and q.carrier is None for q in (a, b)):
            mode = "block_scaled"
        else:
            mode = "fold8" if a.format == b.format == "mxfp4" else "bf16"
    carriers = mode == "fold8" and a.carrier is not None and b.carrier is not None
    a_values, a_scale, a_global = _operand("a", a, mode, carriers)
    b_values, b_scale, b_global = _operand("b", b, mode, carriers)
    try:
        y: Tensor = torch.ops.wlib.fp4_matmul(
            a_values,
            a_scale,
            b_values,
            b_scale,
            a_global,
            b_global,
            alpha=alpha,
            mode=mode,
            out_dtype=out_dtype,
        )
    except ValueError as error:
        raise typed_error(error) from None
    return y


def fp4_signs(seed: int | Tensor, size: int, offset: int = 0) -> Tensor:
    """Random signs of a rotation, made where the seed is.

    Args:
        seed: a number, or int64 [] or [2], the second one a step that counts uses.
        size: 16, 32, 64 or 128.
        offset: keeps the signs of one seed and step apart, 0 to 2^30 - 1.

    Returns:
        int8 [size] of -1 and 1, a function of the arguments alone.

    Raises:
        TypeError, ValueError: an argument does not fit.
        NotImplementedError: no kernel serves the device.
    """
    tensor = _seed(seed, torch.device("cpu"))
    assert tensor is not None
    try:
        signs: Tensor = torch.ops.wlib.fp4_signs(tensor, size, offset=offset)
    except ValueError as error:
        raise typed_error(error) from None
    return signs


def hadamard(x: Tensor, size: int, signs: Tensor | None = None, inverse: bool = False) -> Tensor:
    """Rotate blocks along the last dimension by the orthonormal Hadamard matrix in Sylvester order.

    Args:
        x: float32, bfloat16 or float16 [..., C], C a multiple of size.
        size: 16, 32, 64 or 128.
        signs: int8 [size] or None; values at negative ones are negated before the rotation, or
            after its inverse.
        inverse: undo the rotation with the same signs.

    Returns:
        Of the shape and dtype of x: sums in float32 in a fixed order, times 1/sqrt(size), rounded.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device or the size does not fit.
        NotImplementedError: no kernel serves the device of x.
    """
    try:
        y: Tensor = torch.ops.wlib.hadamard(x, size, signs, inverse=inverse)
    except ValueError as error:
        raise typed_error(error) from None
    return y


def _seed(seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    return torch.tensor(seed, device=device) if isinstance(seed, int) else seed


def _options(
    where: str,
    format: str,
    scale_rule: str | None,
    emit: Sequence[str],
    swizzle: str,
    window: int | None,
) -> dict[str, Any]:
    """The options that both quantising ops share."""
    if isinstance(emit, str) or not emit or any(word not in _EMIT for word in emit):
        refuse(where, f"emit to hold some of {', '.join(map(repr, _EMIT))}", repr(emit), "emit")
    carriers = [word.removeprefix("carrier_") for word in emit if word != "fp4"]
    if len(carriers) > 1:
        refuse(where, "emit with at most one carrier", repr(emit), "emit")
    if swizzle not in ("none", "128x4"):
        refuse(where, "swizzle to be one of 'none', '128x4'", repr(swizzle), "swizzle")
    return {
        "format": format,
        "scale_rule": scale_rule or ("amax" if format == "nvfp4" else "even"),
        "packed": "fp4" in emit,
        "carrier": carriers[0] if carriers else "none",
        "window": window or 0,
        "swizzle": swizzle != "none",
    }


def _collect(
    format: str, out: Sequence[Tensor], global_scale: Tensor | None, swizzle: str
) -> FP4Tensor:
    """An FP4Tensor of the six tensors of one side; absent ones have shape [0]."""
    names = ("codes", "scales", "global_scale", "carrier", "row_scale", "mask")
    absent = torch.Size((0,))
    found = {name: t for name, t in zip(names, out, strict=True) if t.shape != absent}
    if "carrier" in found:
        found["row_scale"] = out[4]  # of a matrix without rows, it has shape [0] as well
    if global_scale is not None:
        found["global_scale"] = global_scale
    return FP4Tensor(format, **found, swizzled=swizzle != "none")


def _operand(
    name: str, q: FP4Tensor, mode: str, carrier: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, scales and global scale of an operand as the op takes them."""
    if carrier or q.codes is None:
        assert q.carrier is not None
        assert q.row_scale is not None
        return q.carrier, q.row_scale, None
    assert q.codes is not None
    assert q.scales is not None
    orders = ("row-major order", "the 128x4 order")
    if q.swizzled != (mode == "block_scaled"):
        expected = f"{name} with scales in {orders[mode == 'block_scaled']}"
        refuse(_MATMUL, expected, orders[q.swizzled], name)
    return q.codes, q.scales, q.global_scale
