"""Problems for the kernels of shared atoms and random bases in the simulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

import wlib
from rebuild_problems import OUT_TYPES, RebuildCase, as_float, as_type, poison, simulated
from sim_problems import Array, probe, without_signed_zero
from wlib.reference import atoms as reference

DISTS = ("uniform", "sign", "normal")


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return as_type(rng.integers(-3, 4, shape), dtype)


def tensor(stored: Array) -> torch.Tensor:
    """The values in float64."""
    return torch.from_numpy(np.ascontiguousarray(as_float(stored)))


def offset(stored: Array, elements: int) -> Array:
    """A copy that starts `elements` after an address that is a multiple of 64.

    So far from any other array that who reads or writes twice its bytes meets none.
    """
    gap = stored.nbytes + 128
    memory = np.zeros(stored.nbytes + 2 * gap, np.uint8)
    first = gap - (memory.ctypes.data + gap) % 64 + elements * stored.itemsize
    copy = memory[first : first + stored.nbytes].view(stored.dtype).reshape(stored.shape)
    copy[...] = stored
    return copy


def same(out: Array, exact: torch.Tensor) -> bool:
    right = as_type(exact.numpy().reshape(out.shape), out.dtype.type)
    return np.array_equal(without_signed_zero(out), without_signed_zero(right))


@dataclasses.dataclass
class AtomsCase:
    """Forward and backward of one exact problem; `shape` is [S, rows, columns]."""

    shape: tuple[int, int, int]
    layers: int
    options: dict[str, Any]
    per_row: bool = False
    rank: int = 0
    base: Any = None  # dtype
    atom: Any = np.float32
    grad: Any = np.float32
    out: Any = np.float32
    resident: bool = True
    ctas: int = 2
    shift: int = 0  # elements by which arrays are off a 16-byte address
    forward: bool = True
    backward: bool = True

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether every result is the reference's."""
        rng = np.random.default_rng(sum(self.shape) + self.layers)
        atoms = offset(integers(rng, self.shape, self.atom), self.shift)
        rows, columns = self.shape[1:]
        coef_shape = (self.layers, self.shape[0], *([rows] if self.per_row else []))
        coef = integers(rng, coef_shape, np.float32)
        how = {"ctas": self.ctas, "resident": self.resident}
        how["options"] = probe.Options(**self.options)
        findings, right = [], True
        weights = (self.layers, rows, columns)
        if self.forward:
            base = None if self.base is None else integers(rng, weights, self.base)
            a = b = None
            if self.rank:
                a = integers(rng, (self.layers, rows, self.rank), self.atom)
                b = integers(rng, (self.layers, self.rank, columns), self.atom)
            out = offset(np.full(weights, poison(self.out), self.out), self.shift)
            report = probe.atoms_reconstruct(atoms, coef, base, a, b, 0.5, out, **how)
            residual = (tensor(a), tensor(b)) if a is not None and b is not None else None
            args = (tensor(atoms), tensor(coef), None if base is None else tensor(base))
            findings += report.findings
            right = right and same(out, reference.reconstruct(*args, residual, 0.5).value)
        if self.backward and not findings:
            grad = offset(integers(rng, weights, self.grad), self.shift)
            d_atoms = offset(np.full(self.shape, poison(self.atom), self.atom), self.shift)
            d_coef = np.full(coef_shape, np.nan, np.float32)
            report = probe.atoms_backward(
                grad, atoms, coef, 0.5, d_atoms, d_coef, rule="", factors=[], first=None,
                second=None, **how,
            )  # fmt: skip
            exact = reference.reconstruct_backward(tensor(grad), tensor(atoms), tensor(coef), 0.5)
            findings += report.findings
            right = right and same(d_atoms, exact[0].value) and same(d_coef, exact[1].value)
        return findings, right


def step_factors(lr: float, betas: tuple[float, float], eps: float, decay: float, t: int,
                 adamw: bool) -> list[float]:  # fmt: skip
    """As UpdateFactors has them."""
    b1, b2 = betas
    size = lr / (1 - b1**t) if adamw else lr
    return [1 - lr * decay, b1, b2, 1 - b1, 1 - b2, size, (1 - b2**t) ** -0.5, eps]


@dataclasses.dataclass
class StepCase:
    """A step of an optimiser by the kernel, whose bits must be those of the CPU's op."""

    rule: str
    options: dict[str, Any]
    atom: Any = np.float32
    resident: bool = True
    shape: tuple[int, int, int] = (10, 3, 180)
    layers: int = 3

    def run(self) -> tuple[list[Any], bool]:
        rng = np.random.default_rng(self.layers)
        adamw = self.rule == "adamw"
        atoms = integers(rng, self.shape, self.atom)
        grad = integers(rng, (self.layers, *self.shape[1:]), np.float32)
        coef = integers(rng, (self.layers, self.shape[0]), np.float32)
        moments = [rng.random(self.shape).astype(np.float32) for _ in range(1 + adamw)]
        numbers = (0.05, (0.9, 0.99), 1e-3, 0.1)
        dtype = torch.bfloat16 if self.atom is np.uint16 else torch.float32
        expected = [tensor(atoms).to(dtype), *(torch.from_numpy(m.copy()) for m in moments)]
        lr, betas, eps, decay = numbers
        expected_coef = wlib.atoms_step(
            torch.from_numpy(grad), expected[0], torch.from_numpy(coef), *expected[1:], lr=lr,
            betas=betas, eps=eps, weight_decay=decay, step=3, scale=0.5,
        )  # fmt: skip
        d_coef = np.full(coef.shape, np.nan, np.float32)
        report = probe.atoms_backward(
            grad, atoms, coef, 0.5, None, d_coef, rule=self.rule,
            factors=step_factors(*numbers, 3, adamw), first=moments[0],
            second=moments[1] if adamw else None, ctas=2, resident=self.resident,
            options=probe.Options(**self.options),
        )  # fmt: skip
        results = [*((a, e.double()) for a, e in zip([atoms, *moments], expected, strict=True)),
                   (d_coef, expected_coef.double())]  # fmt: skip
        return report.findings, all(same(got, exact) for got, exact in results)


@dataclasses.dataclass
class CombineCase:
    """Exact sums of lists of tensors of many sizes and types."""

    lists: int
    outputs: int
    sizes: tuple[int, ...]
    options: dict[str, Any]
    few: bool = True
    resident: bool = True

    def run(self) -> tuple[list[Any], bool]:
        rng = np.random.default_rng(self.lists)
        coef = integers(rng, (self.outputs, self.lists), np.float32) / np.float32(2)
        types = [OUT_TYPES[i % 3] for i in range(len(self.sizes))]
        lists = [
            [offset(integers(rng, (n,), t), (s + i) % 3) for i, (n, t) in enumerate(
                zip(self.sizes, types, strict=True))]
            for s in range(self.lists)
        ]  # fmt: skip
        outs = [[np.full_like(x, poison(x.dtype.type)) for x in lists[0]] for _ in coef]
        report = probe.atoms_combine(
            lists, coef, outs, few=self.few, ctas=3, resident=self.resident,
            options=probe.Options(**self.options),
        )  # fmt: skip
        exact = reference.combine([[tensor(x) for x in one] for one in lists], tensor(coef))
        right = all(
            same(got, true.value)
            for some, trues in zip(outs, exact, strict=True)
            for got, true in zip(some, trues, strict=True)
        )
        return report.findings, right


@dataclasses.dataclass
class ProjectCase:
    """The gradient of random bases; sign bases are exact, others within a bound of the CPU's."""

    dist: str
    count: int
    elements: int
    options: dict[str, Any]
    dtype: Any = np.float32
    parts: int = 1

    def run(self) -> tuple[list[Any], bool]:
        rng = np.random.default_rng(self.elements)
        values = offset(integers(rng, (self.elements,), self.dtype), self.elements % 3)
        coef = np.full(self.count, np.nan, np.float32)
        report = probe.prng_project(
            values, coef, distribution=DISTS.index(self.dist), seed=9, tensor=3, parts=self.parts,
            options=probe.Options(**self.options),
        )  # fmt: skip
        exact = torch.ops.wlib.prng_project(tensor(values), self.count, 9, self.dist, 3).numpy()
        # 32 products a thread and tile, then 32 lanes and 4 warps; normal numbers stay below 6.
        tiles = -(-self.elements // 4096)
        magnitude = np.abs(as_float(values)).sum() * (6 if self.dist == "normal" else 1)
        bound = 0 if self.dist == "sign" else (32 * tiles + 9) * 2.0**-24 * magnitude
        return report.findings, bool((np.abs(coef - exact) <= bound).all())


@dataclasses.dataclass
class ExpandCase:
    """Sums of random bases, whose bits must be those of the CPU."""

    dist: str
    count: int
    elements: int
    options: dict[str, Any]

    def run(self) -> tuple[list[Any], bool]:
        coef = np.random.default_rng(self.count).standard_normal(self.count).astype(np.float32)
        out = np.full(self.elements, np.nan, np.float32)
        key = {"distribution": DISTS.index(self.dist), "seed": 9, "tensor": 3}
        report = probe.prng_expand(coef, out, **key, options=probe.Options(**self.options))
        exact = wlib.prng_expand(torch.from_numpy(coef), (self.elements,), 9, self.dist,
                                 tensor_id=3)  # fmt: skip
        return report.findings, np.array_equal(out, exact.numpy())


@dataclasses.dataclass
class LayersCase:
    """Rebuilt weights of several layers in one launch."""

    layers: list[RebuildCase]
    options: dict[str, Any]

    def run(self) -> tuple[list[Any], bool]:
        for layer in self.layers:
            layer.out[:] = poison(layer.out.dtype.type)
        findings = simulated(self.layers, capacity=8, ctas=2, **self.options)
        return findings, all(layer.is_exact() for layer in self.layers)
