"""`fp8_quantize`, alone and fused with the norm or activation before it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...quantizer import fp8_quantize, rms_norm_fp8_quantize, silu_mul_fp8_quantize
from ..accuracy import Accuracy, sqnr_db
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Work, copy_fraction, normal
from .matmul import E4M3_MAX


@dataclass(frozen=True)
class Rows:
    """x [M, K], gate and up side by side [M, 2 K], the norm's weight [K]; bfloat16."""

    x: Tensor
    gate_up: Tensor
    norm: Tensor


def _operands(sizes: Sizes, generator: torch.Generator) -> Rows:
    m, k = sizes["m"], sizes["k"]
    x, gate_up = normal(generator, m, k), normal(generator, m, 2 * k)
    return Rows(x, gate_up, normal(generator, k))


def _check(result: Tensors, exact: Tensor) -> Accuracy:
    codes, scale = result
    values = codes.double() * scale.double()[:, None]
    return Accuracy(format_sqnr_db=sqnr_db(values, exact.double()))


class Quantize(Arm[Rows]):
    """`wlib.fp8_quantize`."""

    name = "wlib"
    dtype = "bf16 -> fp8"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Rows) -> Work:
        """Take x as it is."""
        return Work(fp8_quantize, (operands.x,), lambda y: _check(y, operands.x))


class NormQuantize(Quantize):
    """`wlib.rms_norm_fp8_quantize`: the norm before it in the same kernel."""

    name = "wlib+rms_norm"

    def prepare(self, operands: Rows) -> Work:
        """Take x and the norm's weight as they are."""
        x, weight = operands.x, operands.norm
        exact = torch.nn.functional.rms_norm(x.double(), x.shape[1:], weight.double(), 1e-6)
        return Work(
            lambda x: rms_norm_fp8_quantize(x, weight, 1e-6),
            (x,),
            lambda y: _check(y, exact),
            (weight,),
        )


class SiluQuantize(Quantize):
    """`wlib.silu_mul_fp8_quantize`: SiLU of a gate times a value in the same kernel."""

    name = "wlib+silu_mul"

    def prepare(self, operands: Rows) -> Work:
        """Take gate and up as they are."""
        gate, up = operands.gate_up.double().chunk(2, dim=1)
        exact = torch.nn.functional.silu(gate) * up
        return Work(silu_mul_fp8_quantize, (operands.gate_up,), lambda y: _check(y, exact))


def formula(x: Tensor) -> Tensors:
    """Return E4M3 codes of x and a scale per row, in torch's own operations."""
    scale = x.abs().amax(1).float() / E4M3_MAX
    return (x / scale[:, None]).to(torch.float8_e4m3fn), scale


class TorchEager(Arm[Rows]):
    """The formula of `fp8_quantize`, operation by operation."""

    name = "torch_eager"
    dtype = "bf16 -> fp8"

    def prepare(self, operands: Rows) -> Work:
        """Take x as it is."""
        return Work(formula, (operands.x,), lambda y: _check(y, operands.x))


class TorchCompile(TorchEager):
    """The same under `torch.compile`."""

    name = "torch_compile"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        return "compiled for GPUs only" if device.type == "cpu" else None

    def prepare(self, operands: Rows) -> Work:
        """Compile the formula."""
        compiled = torch.compile(formula, fullgraph=True)
        return Work(compiled, (operands.x,), lambda y: _check(y, operands.x))


def _large(sizes: Sizes) -> bool:
    return sizes["m"] * sizes["k"] >= 64 << 20


OP = Op(
    name="fp8_quantize",
    sizes=("m", "k"),
    operands=_operands,
    flops=lambda sizes: 0,
    arms=(Quantize, NormQuantize, SiluQuantize, TorchEager, TorchCompile),
    targets=(Target("of copy bandwidth, from 64 Mi elements", 0.80, 0.90, copy_fraction, _large),),
)
