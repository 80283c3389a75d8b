"""FP4 training: the quantiser, the matmul of quantised operands, the layer in both directions."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...fp4 import FP4Tensor, fp4_matmul, fp4_quantize, fp4_requantize_t
from ...fp4_linear import fp4_linear, fp4_state
from ...reference.fp4 import hadamard_matrix
from ..accuracy import Accuracy, sqnr_db
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Work, against, copy_fraction, normal
from .matmul import Matmul, MatmulArm, TorchBf16, TorchFp8Slow, matmul, matmul_flops

ROTATION = 128


@dataclass(frozen=True)
class Values:
    """x [M, K] bfloat16."""

    x: Tensor


def _values(sizes: Sizes, generator: torch.Generator) -> Values:
    return Values(normal(generator, sizes["m"], sizes["k"]))


class Quantize(Arm[Values]):
    """`wlib.fp4_quantize` to MXFP4 after a rotation by 128."""

    name = "wlib"
    dtype = "bf16 -> mxfp4"
    version = staticmethod(wlib_version)
    options: ClassVar[dict[str, Any]] = {"format": "mxfp4"}
    signed: ClassVar[bool] = False

    def prepare(self, operands: Values) -> Work:
        """Take x as it is."""
        x = operands.x
        seed = torch.tensor(1, device=x.device) if "rounding" in self.options else None
        signs = _signs(x.device) if self.signed else None

        def quantize(x: Tensor) -> Any:
            return fp4_quantize(x, hadamard=ROTATION, signs=signs, seed=seed, **self.options)

        def check(_: Tensors) -> Accuracy:
            q = quantize(x)
            rows = (q if isinstance(q, FP4Tensor) else q[0]).dequantize()
            return Accuracy(format_sqnr_db=sqnr_db(rows, rotated(x, signs).double()))

        return Work(lambda x: _parts(quantize(x)), (x,), check)


def _parts(q: FP4Tensor | tuple[FP4Tensor, FP4Tensor]) -> Tensors:
    several = (q,) if isinstance(q, FP4Tensor) else q
    return tuple(part for one in several for part in _tensors(one))


def _signs(device: torch.device) -> Tensor:
    return (1 - 2 * (torch.arange(ROTATION, device=device) % 3 % 2)).to(torch.int8)


def rotated(x: Tensor, signs: Tensor | None = None) -> Tensor:
    """Return x after a rotation by 128, rounded to its dtype."""
    rotation = hadamard_matrix(ROTATION).to(x)
    blocks = x.unflatten(1, (-1, ROTATION))
    return torch.matmul(blocks if signs is None else blocks * signs, rotation).flatten(1)


class QuantizeStochastic(Quantize):
    """The same with stochastic rounding."""

    name = "wlib_stochastic"
    options: ClassVar[dict[str, Any]] = {
        "format": "mxfp4",
        "scale_rule": "three_quarters",
        "rounding": "stochastic",
    }


class QuantizeBoth(Quantize):
    """Along rows and along columns in one pass."""

    name = "wlib_both"
    options: ClassVar[dict[str, Any]] = {"format": "mxfp4", "axis": "both"}


class QuantizeGradient(QuantizeBoth):
    """As the backward pass does: signs, and FP8 carriers instead of codes."""

    name = "wlib_gradient"
    dtype = "bf16 -> e5m2 carriers"
    options: ClassVar[dict[str, Any]] = {
        "format": "mxfp4",
        "axis": "both",
        "emit": ("carrier_e5m2",),
    }
    signed = True


class Requantize(Arm[Values]):
    """`wlib.fp4_requantize_t` of packed MXFP4 to an FP8 carrier, with signs, rotated by 128."""

    name = "wlib"
    dtype = "mxfp4 -> e4m3 carrier"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Values) -> Work:
        """Quantise x."""
        q = fp4_quantize(operands.x)
        assert isinstance(q, FP4Tensor)
        signs = _signs(q.device)
        options = {"hadamard": ROTATION, "signs": signs, "emit": ("carrier_e4m3",)}

        def check(_: Tensors) -> Accuracy:
            exact = rotated(q.dequantize().t().double(), signs)
            found = self.requantize(q, options).dequantize()
            return Accuracy(format_sqnr_db=sqnr_db(found, exact))

        def call(*tensors: Tensor) -> Tensors:
            return _tensors(self.requantize(_with(q, tensors), options))

        return Work(call, _tensors(q), check, (signs,))

    def requantize(self, q: FP4Tensor, options: dict[str, Any]) -> FP4Tensor:
        """Return the carrier of the transposed matrix: the timed call."""
        return fp4_requantize_t(q, **options)


class Separate(Requantize):
    """The same by dequantising to BF16, a transpose and `wlib.fp4_quantize`."""

    name = "separate"

    def requantize(self, q: FP4Tensor, options: dict[str, Any]) -> FP4Tensor:
        """Return the carrier of the transposed matrix: the timed call."""
        again = fp4_quantize(q.dequantize().bfloat16().t().contiguous(), **options)
        assert isinstance(again, FP4Tensor)
        return again


def formula(x: Tensor, rotation: Tensor) -> Tensors:
    """Return the codes of MXFP4 and their scales, in torch's own operations."""
    blocks = (x.unflatten(1, (-1, ROTATION)) @ rotation).reshape(len(x), -1, 32).float()
    exponent = torch.floor(torch.log2(blocks.abs().amax(2))) - 2
    scaled = blocks * torch.exp2(-exponent)[..., None]
    grid = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=x.device)
    codes = torch.bucketize(scaled.abs(), grid).to(torch.uint8) | (scaled < 0) * 8
    codes = codes.flatten(1)
    return codes[:, ::2] | codes[:, 1::2] << 4, (exponent + 127).to(torch.uint8)


class TorchEager(Arm[Values]):
    """Rotation, scales by the floor rule, codes and packing, operation by operation."""

    name = "torch_eager"
    dtype = "bf16 -> mxfp4"

    def prepare(self, operands: Values) -> Work:
        """Make the rotation."""
        rotation = hadamard_matrix(ROTATION).to(operands.x)
        return Work(self.function(rotation), (operands.x,), lambda _: Accuracy(), (rotation,))

    def function(self, rotation: Tensor) -> Any:
        """Return the timed call."""
        return lambda x: formula(x, rotation)


class TorchCompile(TorchEager):
    """The same under `torch.compile`."""

    name = "torch_compile"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return "compiled for GPUs only" if device.type == "cpu" else None

    def function(self, rotation: Tensor) -> Any:
        """Return the timed call."""
        compiled = torch.compile(formula, fullgraph=True)
        return lambda x: compiled(x, rotation)


class MatmulPacked(MatmulArm):
    """`wlib.fp4_matmul` of packed MXFP4 operands."""

    name = "wlib"
    dtype = "mxfp4 x mxfp4"
    version = staticmethod(wlib_version)
    options: ClassVar[dict[str, Any]] = {"format": "mxfp4"}

    def store(self, weight: Tensor, sizes: Sizes) -> Tensors:
        """Convert `weight` [N, K] bfloat16 to what is rotated."""
        self._weight = self._quantize(weight)
        return _tensors(self._weight)

    def inputs(self, x: Tensor) -> Tensors:
        """Convert activations `x` [M, K] bfloat16 to what the timed call takes."""
        self._x = self._quantize(x)
        return _tensors(self._x)

    def call(self, stored: Tensors, inputs: Tensors) -> Tensor:
        """Return y [M, N] bfloat16: the timed call."""
        return fp4_matmul(self._x, _with(self._weight, stored))

    def reference(self, stored: Tensors, inputs: Tensors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return y[rows][:, columns] in float64, from the same stored operands."""
        x, weight = (q.dequantize().double() for q in (self._x, self._weight))
        return x[rows] @ weight[columns].t()

    def _quantize(self, values: Tensor) -> FP4Tensor:
        q: FP4Tensor = fp4_quantize(values, **self.options)
        return q


class MatmulCarrier(MatmulPacked):
    """The same from FP8 carriers."""

    name = "wlib_carrier"
    options: ClassVar[dict[str, Any]] = {"format": "mxfp4", "emit": ("carrier_e4m3",)}


class MatmulNvfp4(MatmulPacked):
    """`wlib.fp4_matmul` of packed NVFP4 operands: products in BF16."""

    name = "wlib_nvfp4"
    dtype = "nvfp4 x nvfp4"
    options: ClassVar[dict[str, Any]] = {"format": "nvfp4"}


def _names(q: FP4Tensor) -> list[str]:
    return [field.name for field in fields(q) if isinstance(getattr(q, field.name), Tensor)]


def _tensors(q: FP4Tensor) -> Tensors:
    return tuple(getattr(q, name) for name in _names(q))


def _with(q: FP4Tensor, tensors: Tensors) -> FP4Tensor:
    return replace(q, **dict(zip(_names(q), tensors, strict=True)))  # type: ignore[arg-type]


class Layer(Arm[Matmul]):
    """`wlib.fp4_linear` with the recipe `wlib`, both directions."""

    name = "wlib"
    dtype = "mxfp4, all three matmuls"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Matmul) -> Work:
        """Take operands that ask for gradients."""
        state = fp4_state(1, operands.x.device)
        return self.both_directions(operands, lambda x, w: fp4_linear(x, w, state=state))

    def both_directions(self, operands: Matmul, layer: Callable[..., Tensor]) -> Work:
        """Return the work of a forward and a backward pass from a gradient of ones."""
        m, n = len(operands.x), len(operands.weight)
        grad = torch.ones(m, n, dtype=operands.x.dtype, device=operands.x.device)

        def call(x: Tensor, w: Tensor) -> Tensors:
            x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
            with torch.enable_grad():
                y = layer(x, w)
            dx, dw = torch.autograd.grad(y, (x, w), grad)
            return y.detach(), dx, dw

        def check(result: Tensors) -> Accuracy:
            exact = operands.x.double() @ operands.weight.double().t()
            return Accuracy(format_sqnr_db=sqnr_db(result[0], exact))

        return Work(call, (operands.x, operands.weight), check, (grad,))


class TorchLayer(Layer):
    """`torch.nn.functional.linear` in BF16, both directions."""

    name = "torch_bf16"
    dtype = "bf16"
    version = Arm.version

    def prepare(self, operands: Matmul) -> Work:
        """Take operands that ask for gradients."""
        return self.both_directions(operands, torch.nn.functional.linear)


def _large(sizes: Sizes) -> bool:
    return sizes["m"] * sizes["k"] >= 64 << 20


OPS = (
    Op(
        name="fp4_quantize",
        sizes=("m", "k"),
        operands=_values,
        flops=lambda sizes: 0,
        arms=(
            Quantize,
            QuantizeStochastic,
            QuantizeBoth,
            QuantizeGradient,
            TorchEager,
            TorchCompile,
        ),
        targets=(
            Target("of copy bandwidth, rows", 0.65, 0.80, copy_fraction, _large),
            Target(
                "of copy bandwidth, rows and columns of a gradient",
                0.55,
                0.72,
                copy_fraction,
                _large,
                arm="wlib_gradient",
            ),
            Target("x torch.compile of the formula", 2.0, 4.0, against("torch_compile"), _large),
        ),
    ),
    Op(
        name="fp4_requantize_t",
        sizes=("m", "k"),
        operands=_values,
        flops=lambda sizes: 0,
        arms=(Requantize, Separate),
        targets=(Target("of copy bandwidth", 0.50, 0.70, copy_fraction, _large),),
    ),
    Op(
        name="fp4_matmul",
        sizes=("m", "n", "k"),
        operands=matmul,
        flops=matmul_flops,
        arms=(MatmulPacked, MatmulCarrier, MatmulNvfp4, TorchBf16, TorchFp8Slow),
        targets=(
            Target(
                "x torch_bf16, from carriers", 1.45, 1.7, against("torch_bf16"), arm="wlib_carrier"
            ),
            Target(
                "x torch_fp8_slow_accum, from carriers",
                1.0,
                1.1,
                against("torch_fp8_slow_accum"),
                arm="wlib_carrier",
            ),
        ),
    ),
    Op(
        name="fp4_linear",
        sizes=("m", "n", "k"),
        operands=matmul,
        flops=lambda sizes: 3 * matmul_flops(sizes),
        arms=(Layer, TorchLayer),
        targets=(Target("x torch_bf16, both directions", 1.25, 1.45, against("torch_bf16")),),
    ),
)
