"""Shared atoms: `atoms_reconstruct`, its backward pass, and the fused optimiser step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...atoms import atoms_reconstruct
from ...atoms_optim import atoms_step
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Tensors, Work, against, copy_fraction, normal, spread

SAMPLE = 4096  # elements of a weight that are compared with float64


@dataclass(frozen=True)
class Shared:
    """atoms [S, N, K] bfloat16, coef float32 [L, S], grad [L, N, K] bfloat16 of the weights."""

    atoms: Tensor
    coef: Tensor
    grad: Tensor

    def weights(self, coef: Tensor) -> Tensor:
        """Return a sample [L, ...] of the weights in float64."""
        return coef.double() @ self.sample(self.atoms).double()

    @staticmethod
    def sample(stack: Tensor) -> Tensor:
        """Return some elements of each matrix of a stack, [..., sample]."""
        flat = stack.flatten(1)
        return flat[:, spread(flat.shape[1], SAMPLE, flat)]


def _operands(sizes: Sizes, generator: torch.Generator) -> Shared:
    layers, atoms, n, k = (sizes[name] for name in ("layers", "atoms", "n", "k"))
    coef = normal(generator, layers, atoms, dtype=torch.float32) / atoms**0.5
    return Shared(normal(generator, atoms, n, k), coef, normal(generator, layers, n, k))


def _flops(sizes: Sizes) -> int:
    return 2 * sizes["layers"] * sizes["atoms"] * sizes["n"] * sizes["k"]


class Reconstruct(Arm[Shared]):
    """`wlib.atoms_reconstruct`."""

    name = "wlib"
    dtype = "bf16, fp32 coef"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Shared) -> Work:
        """Take the operands as they are."""
        exact = operands.weights(operands.coef)
        return Work(
            lambda atoms: atoms_reconstruct(atoms, operands.coef),
            (operands.atoms,),
            lambda w: compare(operands.sample(w), exact, exact),
            (operands.coef,),
        )


class TorchMatmul(Arm[Shared]):
    """One `torch.matmul` of BF16 coefficients and atoms."""

    name = "torch_matmul"
    dtype = "bf16"

    def prepare(self, operands: Shared) -> Work:
        """Round the coefficients."""
        coef = operands.coef.bfloat16()
        shape = operands.grad.shape

        def check(w: Tensor) -> Accuracy:
            rounded, exact = operands.weights(coef), operands.weights(operands.coef)
            return compare(operands.sample(w), rounded, exact)

        return Work(
            lambda atoms: (coef @ atoms.flatten(1)).view(shape),
            (operands.atoms,),
            check,
            (coef,),
        )


class TorchLoop(TorchMatmul):
    """An `einsum` per layer, as MASA's code rebuilds each layer's weight."""

    name = "torch_einsum_loop"

    def prepare(self, operands: Shared) -> Work:
        """Round the coefficients."""
        one = super().prepare(operands)
        (coef,) = one.inputs

        def call(atoms: Tensor) -> Tensor:
            return torch.stack([torch.einsum("s,snk->nk", row, atoms) for row in coef])

        return Work(call, one.stored, one.check, one.inputs)


class Backward(Arm[Shared]):
    """The gradients of atoms and coefficients in one pass."""

    name = "wlib"
    dtype = "bf16, fp32 coef"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Shared) -> Work:
        """Take the operands as they are."""

        def call(grad: Tensor, atoms: Tensor) -> Tensors:
            d_atoms, d_coef = torch.ops.wlib.atoms_reconstruct_backward(grad, atoms, operands.coef)
            return d_atoms, d_coef

        stored = (operands.grad, operands.atoms)
        return Work(call, stored, lambda result: _judge(operands, result), (operands.coef,))


def _judge(operands: Shared, result: Tensors) -> Accuracy:
    exact = operands.coef.double().t() @ operands.sample(operands.grad).double()
    return compare(operands.sample(result[0]), exact, exact)


class TorchTwoMatmuls(Arm[Shared]):
    """The two `torch.matmul`s of autograd, in BF16."""

    name = "torch_two_matmuls"
    dtype = "bf16"

    def prepare(self, operands: Shared) -> Work:
        """Round the coefficients."""
        coef = operands.coef.bfloat16()

        def call(grad: Tensor, atoms: Tensor) -> Tensors:
            d_atoms = (coef.t() @ grad.flatten(1)).view_as(atoms)
            return d_atoms, grad.flatten(1) @ atoms.flatten(1).t()

        stored = (operands.grad, operands.atoms)
        return Work(call, stored, lambda result: _judge(operands, result), (coef,))


class FusedStep(Arm[Shared]):
    """`wlib.atoms_step`: gradients and AdamW in one pass, the atoms' gradient never written."""

    name = "wlib"
    dtype = "bf16, fp32 moments"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Shared) -> Work:
        """Begin with moments of zero."""
        stored = _with_moments(operands)

        def call(grad: Tensor, atoms: Tensor, first: Tensor, second: Tensor) -> Tensors:
            d_coef = atoms_step(
                grad, atoms, operands.coef, first, second, lr=1e-4, betas=(0.9, 0.95)
            )
            return d_coef, atoms, first, second

        return Work(call, stored, lambda _: Accuracy(), (operands.coef,))


class TorchStep(Arm[Shared]):
    """Two `torch.matmul`s in BF16, then torch's fused AdamW in FP32 and a cast to BF16."""

    name = "torch_matmuls_fused_adamw"
    dtype = "bf16, fp32 moments"

    def prepare(self, operands: Shared) -> Work:
        """Begin with moments of zero."""
        coef = operands.coef.bfloat16()
        step = torch.ones((), device=coef.device)

        def call(grad: Tensor, atoms: Tensor, first: Tensor, second: Tensor) -> Tensors:
            d_atoms = (coef.t() @ grad.flatten(1)).view_as(atoms).float()
            d_coef = grad.flatten(1) @ atoms.flatten(1).t()
            master = atoms.float()
            torch._fused_adamw_(
                [master], [d_atoms], [first], [second], [], [step],
                lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.0, eps=1e-8,
                amsgrad=False, maximize=False,
            )  # fmt: skip
            atoms.copy_(master)
            return d_coef, atoms, first, second

        return Work(call, _with_moments(operands), lambda _: Accuracy(), (coef,))


def _with_moments(operands: Shared) -> Tensors:
    moments = (torch.zeros_like(operands.atoms, dtype=torch.float32) for _ in range(2))
    return (operands.grad, operands.atoms.clone(), *moments)


_SIZES = ("layers", "atoms", "n", "k")
OPS = (
    Op(
        name="atoms_reconstruct",
        sizes=_SIZES,
        operands=_operands,
        flops=_flops,
        arms=(Reconstruct, TorchMatmul, TorchLoop),
        targets=(
            Target("of copy bandwidth", 0.85, 0.92, copy_fraction),
            Target("x one torch.matmul", 1.2, 1.4, against("torch_matmul")),
            Target("x a loop of einsum", 8.0, 10.0, against("torch_einsum_loop")),
        ),
    ),
    Op(
        name="atoms_backward",
        sizes=_SIZES,
        operands=_operands,
        flops=lambda sizes: 2 * _flops(sizes),
        arms=(Backward, TorchTwoMatmuls),
        targets=(Target("x two torch.matmul", 1.4, 1.8, against("torch_two_matmuls")),),
    ),
    Op(
        name="atoms_step",
        sizes=_SIZES,
        operands=_operands,
        flops=lambda sizes: 2 * _flops(sizes),
        arms=(FusedStep, TorchStep),
    ),
)
