"""Weights from small factors: LoRA and LoHa merges of many layers, bases from a seed."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import rebuild
from ...prng import prng_expand
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Work, against, normal, spread

SAMPLE_ROWS = 16
SCALE = 0.5


@dataclass(frozen=True)
class Adapters:
    """w0 [L, N, K], and per layer factors [N, r] and [r, K] (two pairs for LoHa); bfloat16."""

    w0: Tensor
    b: Tensor
    a: Tensor
    b2: Tensor
    a2: Tensor

    def factors(self, hadamard: bool) -> Tensors:
        """Return what a merge reads besides w0."""
        first = self.b, self.a
        return (*first, self.b2, self.a2) if hadamard else first

    def judge(self, merged: Tensor, hadamard: bool) -> Accuracy:
        """Compare some rows of the last layer with float64."""
        rows = spread(self.w0.shape[1], SAMPLE_ROWS, merged)
        delta = self.b[-1][rows].double() @ self.a[-1].double()
        if hadamard:
            delta = delta * (self.b2[-1][rows].double() @ self.a2[-1].double())
        exact = self.w0[-1][rows].double() + SCALE * delta
        return compare(merged[rows], exact, exact)


def _adapters(sizes: Sizes, generator: torch.Generator) -> Adapters:
    layers, n, k, r = (sizes[name] for name in ("layers", "n", "k", "rank"))
    factors = [
        normal(generator, layers, *shape) / r**0.25 for shape in ((n, r), (r, k), (n, r), (r, k))
    ]
    return Adapters(normal(generator, layers, n, k), *factors)


class MergeLora(Arm[Adapters]):
    """`wlib.rebuild.merge_many` of LoRA layers: one launch."""

    name = "wlib"
    dtype = "bf16"
    version = staticmethod(wlib_version)
    hadamard = False

    def prepare(self, operands: Adapters) -> Work:
        """Take the operands as they are."""
        layers = range(len(operands.w0))

        def call(w0: Tensor) -> Tensors:
            return tuple(rebuild.merge_many([self.layer(operands, w0, i) for i in layers]))

        check = functools.partial(_check, operands, self.hadamard)
        return Work(call, (operands.w0,), check, operands.factors(self.hadamard))

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> functools.partial[Tensor]:
        """Return the call that merges layer i."""
        return functools.partial(rebuild.lora, w0[i], operands.a[i], operands.b[i], scale=SCALE)


def _check(operands: Adapters, hadamard: bool, merged: Tensors) -> Accuracy:
    return operands.judge(merged[-1], hadamard)


class MergeLoha(MergeLora):
    """`wlib.rebuild.merge_many` of LoHa layers: one launch."""

    hadamard = True

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> functools.partial[Tensor]:
        """Return the call that merges layer i."""
        first, second = (operands.b[i], operands.a[i]), (operands.b2[i], operands.a2[i])
        return functools.partial(rebuild.loha, w0[i], *first, *second, scale=SCALE)


class TorchLora(Arm[Adapters]):
    """`torch.addmm` per layer."""

    name = "torch_addmm_loop"
    dtype = "bf16"
    hadamard = False

    def prepare(self, operands: Adapters) -> Work:
        """Take the operands as they are."""
        layers = range(len(operands.w0))

        def call(w0: Tensor) -> Tensors:
            return tuple(self.layer(operands, w0[i], i) for i in layers)

        check = functools.partial(_check, operands, self.hadamard)
        return Work(call, (operands.w0,), check, operands.factors(self.hadamard))

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> Tensor:
        """Return the merged weight of layer i."""
        return torch.addmm(w0, operands.b[i], operands.a[i], alpha=SCALE)


class TorchLoha(TorchLora):
    """Two products, their product element by element, and a sum per layer, as LyCORIS does."""

    name = "torch_loha_loop"
    hadamard = True

    def layer(self, operands: Adapters, w0: Tensor, i: int) -> Tensor:
        """Return the merged weight of layer i."""
        first = operands.b[i] @ operands.a[i]
        return w0 + first * (operands.b2[i] @ operands.a2[i]) * SCALE


@dataclass(frozen=True)
class Bases:
    """coef float32 [k] of as many random bases [N, K]."""

    coef: Tensor
    shape: tuple[int, int]


def _bases(sizes: Sizes, generator: torch.Generator) -> Bases:
    coef = normal(generator, sizes["bases"], dtype=torch.float32)
    return Bases(coef, (sizes["n"], sizes["k"]))


class Expand(Arm[Bases]):
    """`wlib.prng_expand`, uniform: no basis is ever in memory."""

    name = "wlib"
    dtype = "philox uniform"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Bases) -> Work:
        """Take the coefficients as they are."""
        shape = operands.shape
        return Work(
            lambda coef: prng_expand(coef, shape, seed=1), (operands.coef,), lambda w: Accuracy()
        )


class TorchExpand(Arm[Bases]):
    """NOLA's formula: draw each basis by torch's generator, multiply, add."""

    name = "torch_rand_loop"
    dtype = "philox uniform"

    def prepare(self, operands: Bases) -> Work:
        """Take the coefficients as they are."""

        def call(coef: Tensor) -> Tensor:
            total = torch.zeros(operands.shape, device=coef.device)
            for c in coef:
                total.add_(torch.empty_like(total).uniform_(-1, 1) * c)
            return total

        return Work(call, (operands.coef,), lambda w: Accuracy())


_SIZES = ("layers", "n", "k", "rank")
OPS = (
    Op(
        name="lora_merge",
        sizes=_SIZES,
        operands=_adapters,
        flops=lambda s: 2 * s["layers"] * s["n"] * s["k"] * s["rank"],
        arms=(MergeLora, TorchLora),
        targets=(Target("x addmm per layer", 1.0, 1.5, against("torch_addmm_loop")),),
    ),
    Op(
        name="loha_merge",
        sizes=_SIZES,
        operands=_adapters,
        flops=lambda s: 4 * s["layers"] * s["n"] * s["k"] * s["rank"],
        arms=(MergeLoha, TorchLoha),
        targets=(Target("x LyCORIS's operations", 3.0, 4.0, against("torch_loha_loop")),),
    ),
    Op(
        name="prng_expand",
        sizes=("bases", "n", "k"),
        operands=_bases,
        flops=lambda s: 2 * s["bases"] * s["n"] * s["k"],
        arms=(Expand, TorchExpand),
        targets=(Target("x NOLA's operations", 6.0, 10.0, against("torch_rand_loop")),),
    ),
)
