"""`atoms_linear`: tenants with coefficients of their own over atoms of 16, 8 and 4 bits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...atoms_linear import atoms_linear
from ...experts import pack_experts
from ...int4fp8 import Int4Weight
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Work, against, normal, spread

SAMPLE_ROWS = 64  # of the outputs, compared with float64


@dataclass(frozen=True)
class Tenants:
    """x [M, K] and atoms [S, N, K] bfloat16, coef float32 [M, S]."""

    x: Tensor
    atoms: Tensor
    coef: Tensor
    group_size: int

    def outputs(self, atoms: Tensor, rows: Tensor) -> Tensor:
        """Return some columns of y in float64, for these atoms."""
        products = torch.einsum("mk,snk->msn", self.x.double(), atoms[:, rows].double())
        return (self.coef.double()[..., None] * products).sum(1)

    def check(self, stored: Tensor) -> Callable[[Tensor], Accuracy]:
        """Return what judges an arm that stores the atoms as these numbers."""

        def judge(y: Tensor) -> Accuracy:
            rows = spread(y.shape[1], SAMPLE_ROWS, y)
            exact = self.outputs(self.atoms, rows)
            return compare(y[:, rows], self.outputs(stored, rows), exact)

        return judge


def _operands(sizes: Sizes, generator: torch.Generator) -> Tenants:
    m, atoms, n, k = (sizes[name] for name in ("m", "atoms", "n", "k"))
    coef = normal(generator, m, atoms, dtype=torch.float32) / atoms**0.5
    weights = normal(generator, atoms, n, k) / k**0.5
    return Tenants(normal(generator, m, k), weights, coef, sizes["group_size"])


class Linear(Arm[Tenants]):
    """`wlib.atoms_linear` on bfloat16 atoms."""

    name = "wlib"
    dtype = "bf16, fp32 coef"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Tenants) -> Work:
        """Take the operands as they are."""
        return self.work(operands, operands.atoms, operands.atoms)

    @staticmethod
    def work(operands: Tenants, atoms: Tensor, stored: Tensor) -> Work:
        """Return the call on atoms that stand for the numbers `stored`."""
        return Work(
            lambda rotated: atoms_linear(operands.x, rotated, operands.coef),
            (atoms,),
            operands.check(stored),
            (operands.x, operands.coef),
        )


class LinearFp8(Linear):
    """`wlib.atoms_linear` on E4M3 atoms."""

    name = "wlib+fp8"
    dtype = "e4m3 x bf16"

    def prepare(self, operands: Tenants) -> Work:
        """Round the atoms, scaled by a power of two that the coefficients take off."""
        scale = 2.0 ** (448 / operands.atoms.abs().amax().float()).log2().floor()
        atoms = (operands.atoms * scale).to(torch.float8_e4m3fn)
        scaled = replace(operands, coef=operands.coef / scale)
        work = self.work(scaled, atoms, atoms.float())
        return replace(work, check=operands.check(atoms.float() / scale))


class LinearInt4(Linear):
    """`wlib.atoms_linear` on packed INT4 atoms."""

    name = "wlib+int4"
    dtype = "int4 x bf16"

    def prepare(self, operands: Tenants) -> Work:
        """Quantise and pack the atoms."""
        weights = [Int4Weight.quantize(atom, operands.group_size) for atom in operands.atoms]
        packed = pack_experts(weights)
        stored = torch.stack([weight.dequantize() for weight in weights])

        def call(data: Tensor) -> Tensor:
            return atoms_linear(operands.x, replace(packed, data=data), operands.coef)

        return Work(call, (packed.data,), operands.check(stored), (operands.x, operands.coef))


class TorchSideBySide(Arm[Tenants]):
    """One `torch.matmul` in BF16: the atoms side by side, [N, S K], times scaled copies of x."""

    name = "torch_side_by_side"
    dtype = "bf16"

    def prepare(self, operands: Tenants) -> Work:
        """Lay the atoms side by side and round the coefficients."""
        coef = operands.coef.bfloat16()
        rows = operands.atoms.transpose(0, 1).flatten(1).contiguous()

        def call(atoms: Tensor) -> Tensor:
            scaled = coef[..., None] * operands.x[:, None]
            return scaled.flatten(1) @ atoms.t()

        return Work(call, (rows,), operands.check(operands.atoms), (operands.x, coef))


OP = Op(
    name="atoms_linear",
    sizes=("m", "atoms", "n", "k", "group_size"),
    operands=_operands,
    flops=lambda s: 2 * s["m"] * s["atoms"] * s["n"] * s["k"],
    arms=(Linear, LinearFp8, LinearInt4, TorchSideBySide),
    targets=(
        Target("x torch side by side", 1.0, 1.2, against("torch_side_by_side")),
        Target("x torch side by side", 2.0, 3.5, against("torch_side_by_side"), arm="wlib+int4"),
    ),
)
