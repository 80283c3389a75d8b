"""Optimisers of shared atoms whose gradients are never in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .atoms import atoms_reconstruct
from .errors import check_dtype, refuse, typed_error


def atoms_step(
    grad: Tensor,
    atoms: Tensor,
    coef: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor | None = None,
    *,
    scale: float = 1.0,
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
) -> Tensor:
    """One optimiser step on shared atoms, straight from the gradient of the weights.

    The gradient of atoms[s], scale * sum_l coef[l, s] * grad[l], goes into the atom and its moments
    in the pass that makes it. AdamW (arXiv 1711.05101, in the order of torch.optim.AdamW) with
    `exp_avg_sq`, Lion (arXiv 2302.06675) without.

    Args:
        grad: float32, bfloat16 or float16 [L, *shape], contiguous: that of ``atoms_reconstruct``.
        atoms: float32, bfloat16 or float16 [S, *shape], contiguous, updated in place; on the CPU
            also float64, as everything else then.
        coef: float32 [L, S] or [L, S, shape[0]], those of the reconstruction.
        exp_avg: first moments like atoms, of any of the dtypes, updated in place; zeros at first.
        exp_avg_sq: second moments likewise, or None for Lion. In bfloat16 they cannot decay by less
            than 2^-8: float32 is the dtype for them.
        scale: that of the reconstruction.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW; eps plays no part in Lion.
        step: how many steps this one makes, from 1, for AdamW's correction of the bias.

    Returns:
        The gradient of coef, as before the step; the same bits every time.

    Raises:
        TypeError: a dtype is none of these.
        ValueError: a shape, a device, strides or a number do not fit.
        NotImplementedError: no kernel serves the device of atoms.
    """
    rule = "lion" if exp_avg_sq is None else "adamw"
    beta1, beta2 = betas
    try:
        grad_coef: Tensor = torch.ops.wlib.atoms_step_(
            grad, atoms.detach(), coef.detach().contiguous(), exp_avg, exp_avg_sq, rule=rule,
            scale=scale, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            step=step,
        )  # fmt: skip
    except ValueError as error:
        raise typed_error(error) from None
    return grad_coef


class _AtomsOptimizer(torch.optim.Optimizer):
    """What both rules share: one group with one parameter, the atoms."""

    moments: tuple[str, ...]

    def __init__(self, atoms: Tensor, scale: float, state_dtype: torch.dtype, options: Any) -> None:
        if not isinstance(atoms, Tensor):
            refuse(
                f"wlib.{type(self).__name__}", "atoms, one tensor", type(atoms).__name__, "atoms"
            )
        floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        check_dtype(f"wlib.{type(self).__name__}", "atoms", atoms, *floats)
        super().__init__([atoms], options)
        self.atoms = atoms
        self.scale = scale
        self.state_dtype = torch.float64 if atoms.dtype == torch.float64 else state_dtype
        self._pending: list[tuple[Tensor, Tensor]] = []

    def reconstruct(self, coef: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """The weights [L, *shape] as a leaf that collects the gradient `step` needs.

        Args:
            coef: float32 [L, S] or [L, S, shape[0]]; may be the output of a network.
            out_dtype: as in ``atoms_reconstruct``.
        """
        with torch.no_grad():
            w = atoms_reconstruct(self.atoms.detach(), coef, scale=self.scale, out_dtype=out_dtype)
        self._pending = [(w.requires_grad_(), coef)]
        return w

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the atoms; send the gradient of coef on, into `coef.grad` or through its graph."""
        if closure is not None:
            refuse(f"wlib.{type(self).__name__}", "no closure", "one", "closure")
        pending, self._pending = self._pending, []
        for w, coef in pending:
            if w.grad is not None:
                grad_coef = self._step(w.grad.contiguous(), coef)
                if coef.requires_grad:
                    coef.backward(grad_coef)
        return None

    def _step(self, grad: Tensor, coef: Tensor) -> Tensor:
        state, group = self.state[self.atoms], self.param_groups[0]
        if not state:
            state["step"] = 0
            for name in self.moments:
                state[name] = torch.zeros_like(self.atoms.detach(), dtype=self.state_dtype)
        state["step"] += 1
        return atoms_step(
            grad,
            self.atoms,
            coef,
            *(state[name] for name in self.moments),
            scale=self.scale,
            lr=group["lr"],
            betas=group["betas"],
            eps=group.get("eps", 0.0),
            weight_decay=group["weight_decay"],
            step=state["step"],
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; moments keep their dtype, which torch would make that of the atoms."""
        super().load_state_dict(state_dict)
        for saved in state_dict["state"].values():
            state = self.state[self.atoms]
            state["step"] = int(saved["step"])
            for name in self.moments:
                state[name] = saved[name].to(self.atoms.device, copy=True)


class AtomsAdamW(_AtomsOptimizer):
    """AdamW on shared atoms (MASA, arXiv 2508.04581) whose gradients are never in memory.

    ::

        optimizer = wlib.AtomsAdamW(atoms, lr=3e-4)
        w = optimizer.reconstruct(coef)        # the weights of all layers
        loss(model, w).backward()
        optimizer.step()                       # atoms in place; the gradient of coef goes to coef

    Args:
        atoms: float32, bfloat16 or float16 [S, *shape], contiguous.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW; schedulers of torch set lr.
        scale: factor of the sum over atoms.
        state_dtype: dtype of the moments.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        atoms: Tensor,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        scale: float = 1.0,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(atoms, scale, state_dtype, options)


class AtomsLion(_AtomsOptimizer):
    """Lion (arXiv 2302.06675) on shared atoms, used like `AtomsAdamW`.

    Args:
        atoms: float32, bfloat16 or float16 [S, *shape], contiguous.
        lr, betas, weight_decay: of Lion; schedulers of torch set lr.
        scale: factor of the sum over atoms.
        state_dtype: dtype of the moments.
    """

    moments = ("exp_avg",)

    def __init__(
        self,
        atoms: Tensor,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        scale: float = 1.0,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(atoms, scale, state_dtype, options)
