"""`sparse_lowrank_linear`: SLTrain's layer, against building its dense weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...sparse_lowrank import SparseSupport, sparse_lowrank_linear, sparse_support
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Work, against, normal, spread

SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 256
SCALE = 0.5


@dataclass(frozen=True)
class Layer:
    """x [M, K], b [N, r], a [r, K], values of the support; bfloat16."""

    x: Tensor
    b: Tensor
    a: Tensor
    values: Tensor
    support: SparseSupport

    def dense(self, values: Tensor) -> Tensor:
        """Return W of these values."""
        return SCALE * (self.b @ self.a) + self.support.dense(values)

    def check(self, y: Tensor) -> Accuracy:
        """Judge a sample of y."""
        rows = spread(len(self.x), SAMPLE_ROWS, y)
        columns = spread(len(self.b), SAMPLE_COLUMNS, y)
        low_rank = SCALE * (self.b[columns].double() @ self.a.double())
        weight = low_rank + self.support.dense(self.values.double())[columns]
        exact = self.x[rows].double() @ weight.t()
        return compare(y[rows][:, columns], exact, exact)


def _operands(sizes: Sizes, generator: torch.Generator) -> Layer:
    m, n, k, r = (sizes[name] for name in ("m", "n", "k", "rank"))
    support = sparse_support(n, k, sizes["permille"] / 1000).to(generator.device)
    return Layer(
        normal(generator, m, k),
        normal(generator, n, r) / r**0.5,
        normal(generator, r, k) / k**0.5,
        normal(generator, support.count) / k**0.5,
        support,
    )


class SparseLowRank(Arm[Layer]):
    """`wlib.sparse_lowrank_linear`, forward."""

    name = "wlib"
    dtype = "bf16"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Layer) -> Work:
        """Take the operands as they are."""
        x, support = operands.x, operands.support
        return Work(
            lambda b, a, values: sparse_lowrank_linear(x, b, a, values, support, SCALE),
            (operands.b, operands.a, operands.values),
            operands.check,
            (x,),
        )


class TorchDense(Arm[Layer]):
    """SLTrain's own way: build W, then one matmul."""

    name = "torch_dense"
    dtype = "bf16"

    def prepare(self, operands: Layer) -> Work:
        """Take the operands as they are."""
        x, support = operands.x, operands.support
        places = support.indices()

        def call(b: Tensor, a: Tensor, values: Tensor) -> Tensor:
            weight = SCALE * (b @ a)
            weight.view(-1).index_add_(0, places, values)
            return x @ weight.t()

        return Work(call, (operands.b, operands.a, operands.values), operands.check, (x,))


OP = Op(
    name="sparse_lowrank",
    sizes=("m", "n", "k", "rank", "permille"),
    operands=_operands,
    flops=lambda s: 2 * s["m"] * (s["rank"] * (s["n"] + s["k"])),
    arms=(SparseLowRank, TorchDense),
    targets=(Target("x SLTrain's own way", 1.6, 2.0, against("torch_dense")),),
)
