"""``torch.ops.wlib.fp4_linear`` and its gradient: the matmuls of a linear layer by a recipe.

They are made of the ops of family fp4, so they run where those do. Operands are the six tensors of
`fp4_quantize`: codes, scales, global_scale, carrier, row_scale, mask, absent ones of shape [0]. A
matrix in FP8 is one with a carrier and a row scale alone; what is multiplied in BF16 has none.
Where mode "block_scaled" multiplies, scales have its order from the quantiser on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _block_scaled
from ..fp4 import FP4Tensor, row_major_scales
from ..fp4_recipe import FP4Recipe, from_text

_CODES, _SCALES, _GLOBAL, _CARRIER, _ROW_SCALE, _MASK = range(6)
Six = list[Tensor]
# Offsets of the random roundings of one step.
_DY, _W, _X = range(3)
_UNIT = 32  # columns of an operand come in multiples of it: what the GPU's matmuls take


def there(tensor: Tensor) -> bool:
    """Whether an op gave this tensor."""
    return tensor.shape != (0,)


def forward_unit(recipe: FP4Recipe) -> int:
    """K is padded to a multiple of this."""
    return _UNIT if recipe.forward == "fp8" else max(_UNIT, recipe.hadamard)


def saves_transposed(recipe: FP4Recipe) -> bool:
    """Whether x is saved quantised for dW, instead of as the forward pass multiplied it."""
    return not recipe.requantize_x and recipe.wgrad == "fp4"


def padded(matrix: Tensor, rows: int = 1, columns: int = 1) -> Tensor:
    """With zeros below and to the right, up to multiples."""
    below, right = -matrix.shape[0] % rows, -matrix.shape[1] % columns
    return F.pad(matrix, (0, right, 0, below)) if below or right else matrix


def quantize_operand(matrix: Tensor, recipe: FP4Recipe, square: bool = False) -> Six:
    """x or W for the forward pass, columns padded; empty where that runs in BF16."""
    if recipe.forward == "bf16":
        return []
    values = padded(matrix.contiguous(), columns=forward_unit(recipe))
    if recipe.forward == "fp8":
        return _fp8(values)
    six: Six = torch.ops.wlib.fp4_quantize(
        values,
        format=recipe.format,
        scale_rule=recipe.scale_rule if not square else "amax",
        hadamard=recipe.hadamard,
        carrier="e4m3" if _takes_carriers(recipe, matrix.device) else "none",
        mask=recipe.mask,
        swizzle=_block_scaled.serves(matrix.device),
        square=square,
    )
    return six


def _takes_carriers(recipe: FP4Recipe, device: torch.device) -> bool:
    return recipe.format == "mxfp4" and not _block_scaled.serves(device)


def _fp8(values: Tensor) -> Six:
    codes, scale = torch.ops.wlib.fp8_quantize(values)
    none = values.new_empty(0)
    return [none, none, none, codes, scale, none]


def _multiply(a: Six, b: Six, alpha: float, out_dtype: torch.dtype) -> Tensor:
    def operand(six: Six) -> tuple[Tensor, Tensor, Tensor | None]:
        if there(six[_CARRIER]):
            return six[_CARRIER], six[_ROW_SCALE], None
        return six[_CODES], six[_SCALES], six[_GLOBAL] if there(six[_GLOBAL]) else None

    left, right = operand(a), operand(b)
    if not there(a[_CARRIER]) and _block_scaled.serves(a[_CODES].device):
        return _block_scaled.multiply(left, right, alpha, out_dtype)
    (a_values, a_scale, a_global), (b_values, b_scale, b_global) = left, right
    y: Tensor = torch.ops.wlib.fp4_matmul(
        a_values,
        a_scale,
        b_values,
        b_scale,
        a_global,
        b_global,
        alpha=alpha,
        mode="fold8" if a_global is None and b_global is None else "bf16",
        out_dtype=out_dtype,
    )
    return y


def _bf16_product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """a @ b of values rounded to BF16; where only the sums are to be rounded, to out_dtype."""
    return (a.to(torch.bfloat16) @ b.to(torch.bfloat16)).to(out_dtype)


def _octets(tensor: Tensor) -> Tensor:
    """Its bytes: tensors of bytes need no gradient."""
    return tensor.reshape(tensor.shape or (1,)).view(torch.uint8)


def _factor(rule: str) -> float:
    return 4 / 3 if rule == "three_quarters" else 1.0


# What of X_q is saved, as bytes: values, scales, global_scale, mask.
def _saved(x: Tensor, six: Six, rng: Tensor, recipe: FP4Recipe) -> tuple[Tensor, ...]:
    tensors: Sequence[Tensor | None] = (None,) * 4
    if recipe.forward == "fp8":
        tensors = (six[_CARRIER], six[_ROW_SCALE], None, None)
    elif recipe.forward == "fp4":
        if saves_transposed(recipe):
            six = Backward(recipe, rng, x.shape[1]).x_transposed(padded(x, columns=_UNIT))
        tensors = [six[i] if there(six[i]) else None for i in (_CODES, _SCALES, _GLOBAL, _MASK)]
    # An op may not return one tensor twice.
    return tuple(x.new_empty(0, dtype=torch.uint8) if t is None else _octets(t) for t in tensors)


# One op, because a compiler may read a plain copy of the state after it has been counted up.
@torch.library.custom_op("wlib::fp4_next", mutates_args=("state",))
def fp4_next_op(state: Tensor) -> Tensor:
    """The state int64 [2] as it is; then counts its step up."""
    now = state.clone()
    state[1].add_(1)
    return now


@fp4_next_op.register_fake
def _next_fake(state: Tensor) -> Tensor:
    return torch.empty_like(state)


@torch.library.custom_op("wlib::fp4_linear", mutates_args=())
def fp4_linear_op(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    w_quantized: Sequence[Tensor],
    rng: Tensor,
    recipe: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y and what of x is saved; x [M, K], w [N, K], w_quantized of `quantize_operand`."""
    chosen = from_text(recipe)
    six = quantize_operand(x, chosen)
    inner = out_dtype if bias is None else torch.float32
    if six:
        y = _multiply(six, list(w_quantized), _factor(chosen.scale_rule) ** 2, inner)
    else:
        y = _bf16_product(x, w.t(), inner)
    y = y if bias is None else (y + bias).to(out_dtype)
    return y, *_saved(x, six, rng, chosen)  # type: ignore[return-value]


@fp4_linear_op.register_fake
def _fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    w_quantized: Sequence[Tensor],
    rng: Tensor,
    recipe: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    chosen = from_text(recipe)
    m, k = x.shape
    nv = chosen.format == "nvfp4"

    def octets(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.uint8)

    y = x.new_empty((m, w.shape[0]), dtype=out_dtype)
    if chosen.forward == "bf16":
        return y, octets(0), octets(0), octets(0), octets(0)
    if chosen.forward == "fp8":
        return y, octets(m, -(-k // _UNIT) * _UNIT), octets(m * 4), octets(0), octets(0)
    rows, columns = m, -(-k // forward_unit(chosen)) * forward_unit(chosen)
    if saves_transposed(chosen):
        unit = Backward(chosen, rng, k).unit(chosen.wgrad_hadamard)
        rows, columns = columns, -(-m // unit) * unit
    scales = rows, columns // (16 if nv else 32)
    if _block_scaled.serves(x.device):
        scales = _block_scaled.scale_shape(*scales)
    return (
        y,
        octets(rows, columns // 2),
        octets(*scales),
        octets(4) if nv else octets(0),
        octets(rows, columns // 8) if chosen.mask else octets(0),
    )


class Backward:
    """The operands of the two matmuls of the backward pass."""

    def __init__(self, recipe: FP4Recipe, rng: Tensor, k: int) -> None:
        self.recipe, self.rng, self.k = recipe, rng, k

    def unit(self, hadamard: int) -> int:
        """The contraction axis is padded to a multiple of this."""
        return max(_UNIT, hadamard)

    def _signs(self, size: int) -> Tensor | None:
        if not size:
            return None
        seed = self.rng[0] if self.recipe.fixed_signs else self.rng
        signs: Tensor = torch.ops.wlib.fp4_signs(seed, size)
        return signs

    def _options(self, hadamard: int, offset: int) -> dict[str, Any]:
        recipe = self.recipe
        carriers, of_dy = _takes_carriers(recipe, self.rng.device), offset == _DY
        random = recipe.grad_rounding != "nearest" and (of_dy or recipe.round_all)
        return {
            "format": recipe.format,
            "scale_rule": recipe.grad_scale_rule,
            "hadamard": hadamard,
            "signs": self._signs(hadamard),
            "packed": not carriers,
            "carrier": ("e5m2" if of_dy else "e4m3") if carriers else "none",
            "swizzle": _block_scaled.serves(self.rng.device),
            "rounding": recipe.grad_rounding if random else "nearest",
            "seed": self.rng if random else None,
            "offset": offset,
        }

    def alpha(self) -> float:
        """What a product of two operands is multiplied with; one of them of the forward pass."""
        own = _factor(self.recipe.grad_scale_rule) * self.recipe.alignment
        return own * own

    def gradient(self, dy: Tensor) -> tuple[Six, Six]:
        """dY along N and, transposed, along the tokens, each where its matmul is in FP4."""
        recipe = self.recipe
        sizes = recipe.dgrad_hadamard, recipe.wgrad_hadamard
        # What is saved transposed is packed, and both operands of a matmul are of one kind.
        of_wgrad = {"packed": True, "carrier": "none"} if saves_transposed(recipe) else {}
        together = sizes[0] == sizes[1] and not (of_wgrad and _takes_carriers(recipe, dy.device))
        if recipe.dgrad == recipe.wgrad == "fp4" and together:
            unit = self.unit(sizes[0])
            both = torch.ops.wlib.fp4_quantize(
                padded(dy, unit, unit), axis="both", **self._options(sizes[0], _DY)
            )
            return both[:6], both[6:]
        rows: Six = []
        columns: Six = []
        if recipe.dgrad == "fp4":
            matrix = padded(dy, columns=self.unit(sizes[0]))
            rows = torch.ops.wlib.fp4_quantize(matrix, **self._options(sizes[0], _DY))
        if recipe.wgrad == "fp4":
            matrix = padded(dy, rows=self.unit(sizes[1]))
            columns = torch.ops.wlib.fp4_quantize(
                matrix, axis="columns", **(self._options(sizes[1], _DY) | of_wgrad)
            )
        return rows, columns

    def x_transposed(self, x: Tensor) -> Six:
        """x itself, transposed, for dW."""
        size = self.recipe.wgrad_hadamard
        matrix = padded(x.contiguous(), rows=self.unit(size))
        options = self._options(size, _X) | {"carrier": "none", "packed": True}
        six: Six = torch.ops.wlib.fp4_quantize(matrix, axis="columns", **options)
        return six

    def transposed(self, operand: Operand, offset: int) -> Six:
        """What the forward pass multiplied, for the other contraction axis."""
        size = self.recipe.dgrad_hadamard if offset == _W else self.recipe.wgrad_hadamard
        options, unit = self._options(size, offset), self.unit(size)
        if self.recipe.forward != "fp4":
            matrix = padded(operand.values(), rows=unit)
            six: Six = torch.ops.wlib.fp4_quantize(matrix, axis="columns", **options)
            return six
        square = self.recipe.square_weight and offset == _W
        packed = operand.packed
        six = torch.ops.wlib.fp4_requantize_t(
            padded(packed.codes, rows=unit),  # type: ignore[arg-type]
            _padded_scales(packed, unit),
            packed.global_scale,
            square=square,
            global_scale=packed.global_scale if square else None,
            **options,
        )
        if square:  # a given global scale is not returned
            assert packed.global_scale is not None
            six[_GLOBAL] = packed.global_scale
        return six


def _padded_scales(packed: FP4Tensor, rows: int) -> Tensor:
    scales = row_major_scales(packed)  # the one order that is read to requantise
    return padded(scales.view(torch.uint8), rows=rows).view(scales.dtype)


class Operand:
    """X or W as the forward pass multiplied it; absent tensors have shape [0]."""

    def __init__(self, six: Six, plain: Tensor, recipe: FP4Recipe) -> None:
        self.six, self.plain, self.recipe = six, plain, recipe

    @property
    def packed(self) -> FP4Tensor:
        """Codes and scales."""
        six = self.six
        global_scale = six[_GLOBAL] if there(six[_GLOBAL]) else None
        codes, scales = six[_CODES], six[_SCALES]
        swizzled = _block_scaled.serves(codes.device)
        return FP4Tensor(self.recipe.format, codes, scales, global_scale, swizzled=swizzled)

    def values(self) -> Tensor:
        """float32 [R, C], or the plain matrix."""
        if self.recipe.forward == "bf16":
            return self.plain.contiguous()
        if self.recipe.forward == "fp8":
            return self.six[_CARRIER].float() * self.six[_ROW_SCALE][:, None]
        return self.packed.dequantize()

    def masked(self, gradient: Tensor) -> Tensor:
        """The gradient without the values that clipped."""
        mask = self.six[_MASK] if self.six else None
        if mask is None or not there(mask):
            return gradient
        bits = mask[..., None] >> torch.arange(8, device=mask.device) & 1
        return gradient * bits.flatten(1)


def _x_operand(saved: Sequence[Tensor], plain: Tensor, recipe: FP4Recipe) -> Operand:
    values, scales, global_scale, mask = saved
    none = values.new_empty(0)
    if recipe.forward == "bf16":
        return Operand([], plain, recipe)
    if recipe.forward == "fp8":
        row_scale = scales.view(torch.float32)
        six = [none, none, none, values.view(torch.float8_e4m3fn), row_scale, none]
        return Operand(six, plain, recipe)
    if recipe.format == "nvfp4":
        scales, global_scale = scales.view(torch.float8_e4m3fn), global_scale.view(torch.float32)[0]
    return Operand([values, scales, global_scale, none, none, mask], plain, recipe)


def _product(
    gemm: str, dy: Tensor, rows: Six, operand: Operand, turned: Six, scale: float
) -> Tensor:
    """dy @ operand, float32 [rows of dy, K padded]; rows and turned: both in FP4."""
    if gemm == "fp4":
        return _multiply(rows, turned, scale, torch.float32)
    values = operand.values()
    if gemm == "bf16":
        return _bf16_product(dy, values, torch.float32)
    right = padded(values.t().contiguous(), columns=_UNIT)
    left = padded(dy.contiguous(), columns=_UNIT)
    return _multiply(_fp8(left), _fp8(right), 1.0, torch.float32)


def _finish(operand: Operand, product: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Out of the rotated domain: mask, inverse rotation, padding, dtype."""
    recipe = operand.recipe
    if recipe.forward == "fp4":
        product = operand.masked(product)
        if recipe.hadamard:
            product = torch.ops.wlib.hadamard(product, recipe.hadamard, inverse=True)
    return product[:, :k].to(dtype).contiguous()


@torch.library.custom_op("wlib::fp4_linear_backward", mutates_args=())
def fp4_linear_backward_op(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    x_saved: Sequence[Tensor],
    w_quantized: Sequence[Tensor],
    rng: Tensor,
    recipe: str,
    k: int,
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """dX [M, K] and dW [N, K], the wanted ones of the two; else of shape [0]."""
    chosen = from_text(recipe)
    m, n = dy.shape
    dy = dy.contiguous()
    work = Backward(chosen, rng, k)
    rows, columns = work.gradient(dy)
    alpha = work.alpha() * (_factor(chosen.scale_rule) if chosen.forward == "fp4" else 1.0)
    dx, dw = dy.new_empty(0, dtype=x_dtype), dy.new_empty(0, dtype=w_dtype)
    if wanted[0]:
        weight = Operand(list(w_quantized), dy if w is None else w, chosen)
        turned = work.transposed(weight, _W) if chosen.dgrad == "fp4" else []
        product = _product(chosen.dgrad, dy, rows, weight, turned, alpha)[:m]
        dx = _finish(_x_operand(x_saved, product, chosen), product, k, x_dtype)
    if wanted[1]:
        acts = _x_operand(x_saved, dy if x is None else x, chosen)
        if saves_transposed(chosen):
            turned = acts.six
        else:
            turned = work.transposed(acts, _X) if chosen.wgrad == "fp4" else []
        product = _product(chosen.wgrad, dy.t(), columns, acts, turned, alpha)[:n]
        weight = Operand(list(w_quantized), dy, chosen)
        dw = _finish(weight, product, k, w_dtype)
    return dx, dw


@fp4_linear_backward_op.register_fake
def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    x_saved: Sequence[Tensor],
    w_quantized: Sequence[Tensor],
    rng: Tensor,
    recipe: str,
    k: int,
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    m, n = dy.shape
    dx = dy.new_empty((m, k) if wanted[0] else (0,), dtype=x_dtype)
    return dx, dy.new_empty((n, k) if wanted[1] else (0,), dtype=w_dtype)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, bias, w_quantized, rng, recipe, _ = inputs
    chosen = from_text(recipe)
    plain = chosen.forward == "bf16"
    ctx.set_materialize_grads(False)
    ctx.count = len(w_quantized)
    ctx.recipe, ctx.k, ctx.dtypes = recipe, x.shape[1], (x.dtype, w.dtype)
    ctx.bias_dtype = None if bias is None else bias.dtype
    # Carriers are made again from what is packed; a mask of W goes with dW.
    packed = [t for i, t in enumerate(w_quantized) if chosen.forward == "fp8" or i in
              (_CODES, _SCALES, _GLOBAL, _MASK)]  # fmt: skip
    ctx.save_for_backward(x if plain else None, w if plain else None, rng, *output[1:], *packed)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    constants = [None] * ctx.count, None, None, None
    if dy is None:
        return None, None, None, *constants
    x, w, rng, *tensors = ctx.saved_tensors
    x_saved, packed = tensors[:4], tensors[4:]
    if len(packed) == 4:
        empty = packed[0].new_empty(0)
        packed = [*packed[:3], empty, empty, packed[3]]
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    dx = dw = db = None
    if any(wanted):
        dx, dw = torch.ops.wlib.fp4_linear_backward(
            dy, x, w, x_saved, packed, rng, ctx.recipe, ctx.k, *ctx.dtypes, wanted
        )
    if ctx.needs_input_grad[2]:
        db = dy.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx if wanted[0] else None, dw if wanted[1] else None, db, *constants


fp4_linear_op.register_autograd(_backward, setup_context=_setup)
