"""Problems for the int4fp8 kernels in the simulator, with their float64 reference."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim_numbers import E4M3, Array, from_bf16, rounded, to_bf16, to_e4m3, values_of
from source_tree import BUILD


def load_probe() -> Any:
    """The module wlib_probe of the development build, or of $WLIB_PROBE_DIR."""
    folder = os.environ.get("WLIB_PROBE_DIR", str(BUILD))
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("wlib_probe")
    finally:
        sys.path.remove(folder)


probe = load_probe()


def without_signed_zero(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values with -0 as 0; uint16 holds the bits of BF16."""
    return np.where(y == 0x8000, np.uint16(0), y) if y.dtype == np.uint16 else y + y.dtype.type(0)


class Shape(NamedTuple):
    m: int
    n: int
    k: int
    group_size: int
    zero_points: bool = False

    @property
    def groups_per_tile(self) -> int:
        whole = self.group_size % 128 == 0 or self.group_size == self.k
        return 1 if whole else 128 // self.group_size


@dataclasses.dataclass
class Epilogue:
    """What follows scaled sums and bias; every field as the kernels get it."""

    silu_mul: bool = False
    residual: Array | None = None  # [m, columns] float32, float16, or uint16 with BF16's bits
    in_place: bool = False  # the residual is also where the outputs go
    out_scale: npt.NDArray[np.float32] | None = None  # []

    def finish(self, v: npt.NDArray[np.float64]) -> tuple[Array, Array]:
        """The least and the greatest outputs that float32 arithmetic may arrive at, in float64.

        They differ where silu comes in: exp and three more roundings, and exp overflows for a gate
        below -88, whose silu is at most 3e-37.
        """
        slack = np.zeros(())
        if self.silu_mul:
            gate, up = v[:, 0::2], v[:, 1::2]
            with np.errstate(over="ignore"):
                v = gate / (1 + np.exp(-gate)) * up
            slack = np.abs(v) * 2.0**-21 + 1e-36 * np.abs(up)
        if self.residual is not None:
            v = v + values_of(self.residual)
            slack = slack + np.abs(v) * (2.0**-24 * self.silu_mul)
        scale = 1 if self.out_scale is None else self.out_scale.astype(np.float64)
        return (v - slack) / scale, (v + slack) / scale


@dataclasses.dataclass
class Problem:
    """y[m, n] = x_scale[m] channel_scale[n] sum_k x[m, k] (q - zero)[n, k] scale[n, g] + bias[n]

    The epilogue has no part in `reference`, but in what is right.
    """

    shape: Shape
    x: npt.NDArray[np.uint8]  # [m, k] E4M3 bits
    q: npt.NDArray[np.int8]  # [n, k], -8..7
    scale: npt.NDArray[np.float64]  # [n, groups], BF16 values
    zero: npt.NDArray[np.float32]  # [n, groups]
    channel_scale: npt.NDArray[np.float32]  # [n]
    x_scale: npt.NDArray[np.float32]  # [m]
    bias: npt.NDArray[np.float32] | None  # [n]
    epilogue: Epilogue = dataclasses.field(default_factory=Epilogue)
    expert_offsets: Array | None = None  # a stack of weights: see grouped_problems

    def _per_column(self, per_group: Array) -> Array:
        return np.repeat(per_group, self.shape.group_size, axis=1)

    def _finish(self, sums: Array) -> npt.NDArray[np.float64]:
        outer = self.x_scale[:, None].astype(np.float64) * self.channel_scale
        return sums * outer

    def reference(self) -> npt.NDArray[np.float64]:
        weights = (self.q - self._per_column(self.zero)) * self._per_column(self.scale)
        y = self._finish(E4M3[self.x] @ weights.astype(np.float64).T)
        return y if self.bias is None else y + self.bias

    def is_right(self, y: Array) -> bool:
        """Whether y, in any type, is the reference with the epilogue applied and rounded once."""
        low, high = (rounded(v, y.dtype.type) for v in self.epilogue.finish(self.reference()))
        return bool(np.all((values_of(low) <= values_of(y)) & (values_of(y) <= values_of(high))))

    def output(self, out: type[np.generic]) -> Array:
        """Where the outputs go: NaN, or the residual."""
        if self.epilogue.in_place:
            assert self.epilogue.residual is not None
            return self.epilogue.residual.copy()
        poison = {np.uint16: 0x7FC1, np.uint8: 0x7F}.get(out, np.nan)
        columns = self.shape.n // 2 if self.epilogue.silu_mul else self.shape.n
        return np.full((self.shape.m, columns), poison, out)

    def epilogue_into(self, y: Array) -> dict[str, Any]:
        """The epilogue as wlib_probe takes it."""
        e = self.epilogue
        residual = y if e.in_place else e.residual
        rest = {"silu_mul": e.silu_mul, "out_scale": e.out_scale}
        return {"bias": self.bias, "residual": residual, **rest}

    def magnitude(self) -> npt.NDArray[np.float64]:
        """Sum of the magnitudes of all that the kernel adds up, for error bounds."""
        odd = np.abs(2.0 * self.q + 1) + np.abs(1.0 + 2 * self._per_column(self.zero))
        weights = odd / 2 * np.abs(self._per_column(self.scale))
        return self._finish(np.abs(E4M3[self.x]) @ weights.T)

    def x_sums(self) -> npt.NDArray[np.float32]:
        """Sums of x over each group of a k tile, token after token; nobody may read the padding."""
        m, _, k, group_size, _ = self.shape
        columns = min(group_size, 128, k)
        sums = np.full((-(-k // columns), -(-m // 4) * 4), np.nan, np.float32)
        sums[:, :m] = np.add.reduceat(E4M3[self.x], np.arange(0, k, columns), axis=1).T
        return sums

    def packed(self) -> npt.NDArray[np.uint8]:
        import torch

        from wlib import layout

        nibbles = (self.q & 15).astype(np.uint8)
        data = layout.pack(
            torch.from_numpy(nibbles[:, 0::2] | nibbles[:, 1::2] << 4),
            torch.from_numpy(self.scale.astype(np.float32)).bfloat16(),
            torch.from_numpy(self.zero) if self.shape.zero_points else None,
            torch.from_numpy(self.channel_scale),
        )
        return np.ascontiguousarray(data.numpy())


def _powers(rng: np.random.Generator, low: int, high: int, size: tuple[int, ...]) -> Array:
    return 2.0 ** rng.integers(low, high + 1, size)


def exact_problem(rng: np.random.Generator, shape: Shape) -> Problem:
    """Small integers and powers of two: every partial sum is exact, so y is known bit for bit.

    Truncated FP8 accumulation keeps 13 bits below the largest addend, hence mostly zeros in x.
    """
    m, n, k, group_size, zero_points = shape
    groups = k // group_size
    values = np.concatenate([np.zeros(8), np.arange(-2, 3)])
    return Problem(
        shape,
        x=to_e4m3(rng.choice(values, (m, k))),
        q=rng.integers(-8, 8, (n, k)).astype(np.int8),
        scale=_powers(rng, -2, 2, (n, groups)),
        zero=(rng.integers(-8, 8, (n, groups)) * zero_points).astype(np.float32),
        channel_scale=_powers(rng, -1, 1, (n,)).astype(np.float32),
        x_scale=_powers(rng, -2, 2, (m,)).astype(np.float32),
        bias=rng.integers(-64, 65, n).astype(np.float32) if rng.integers(2) else None,
    )


def random_problem(rng: np.random.Generator, shape: Shape) -> Problem:
    """Normal activations quantised per token, normal weights quantised absmax/8 per group."""
    m, n, k, group_size, zero_points = shape
    groups = k // group_size
    x = rng.standard_normal((m, k))
    x_scale = (np.abs(x).max(axis=1) / 448).astype(np.float32)
    w = rng.standard_normal((n, groups, group_size)) * 0.02
    scale = from_bf16(to_bf16(np.abs(w).max(axis=2) / 8))
    zero = (rng.standard_normal((n, groups)) * zero_points).astype(np.float32)
    return Problem(
        shape,
        x=to_e4m3(x / x_scale[:, None]),
        q=np.clip(np.rint(w / scale[:, :, None] + zero[:, :, None]), -8, 7)
        .astype(np.int8)
        .reshape(n, k),
        scale=scale,
        zero=zero,
        channel_scale=(rng.random(n) + 0.5).astype(np.float32),
        x_scale=x_scale,
        bias=None,
    )


class Instance(NamedTuple):
    """An instance of the decode kernel, as wlib_probe.int4fp8_decode_instances() lists them."""

    tokens: int
    consumers: int
    stages: int
    groups_per_tile: int
    zero_points: bool


INSTANCES = [Instance(*row) for row in probe.int4fp8_decode_instances()]


def group_sizes(instance: Instance | CooperativeInstance, k: int) -> list[int]:
    """Those that the instance serves for rows of k weights."""
    if instance.groups_per_tile > 1:
        sizes = [128 // instance.groups_per_tile]
    else:
        sizes = [*range(128, k, 128), k]
    return [size for size in sizes if k % size == 0]


@dataclasses.dataclass
class GemmCase:
    """An exact problem and how to run it; mutants run it in a process of their own."""

    problem: Problem
    packed: npt.NDArray[np.uint8]
    arguments: dict[str, Any]  # of decode() or cooperative(), by the type of the instance

    def run(self) -> tuple[list[Any], bool]:
        """Findings, and whether the result is the reference's."""
        kernel = decode if isinstance(self.arguments["instance"], Instance) else cooperative
        y, findings = kernel(self.problem, packed=self.packed, **self.arguments)
        return findings, self.problem.is_right(y)


class Result(NamedTuple):
    y: Array  # float32, float16, or the bits of BF16 in uint16, of E4M3 in uint8
    findings: list[Any]


def decode(*arguments: Any, **options: Any) -> Result:
    """Run the decode kernel as `decode_report` does."""
    y, report = decode_report(*arguments, **options)
    return Result(y, report.findings)


def decode_report(
    problem: Problem,
    instance: Instance,
    split: int = 1,
    clusters: int = 1,
    out: type[np.generic] = np.float32,
    packed: npt.NDArray[np.uint8] | None = None,
    prefetch_weight: bool = True,
    **options: Any,
) -> tuple[npt.NDArray[Any], Any]:
    """The result and report of the decode kernel in `clusters` clusters of `split` CTAs."""
    y = problem.output(out)
    report = probe.int4fp8_decode(
        problem.x,
        problem.packed() if packed is None else packed,
        problem.x_scale,
        problem.epilogue_into(y),
        y,
        expert_offsets=problem.expert_offsets,
        groups_per_tile=instance.groups_per_tile,
        prefetch_weight=prefetch_weight,
        zero_points=instance.zero_points,
        tokens=instance.tokens,
        consumers=instance.consumers,
        stages=instance.stages,
        split=split,
        clusters=clusters,
        options=probe.Options(**options),
    )
    return y, report


class CooperativeInstance(NamedTuple):
    """An instance of the cooperative kernel that is compiled in."""

    tokens: int
    rows: int  # of a tile; 256: in clusters of two CTAs
    stages: int
    groups_per_tile: int
    zero_points: bool


COOPERATIVE_INSTANCES = [CooperativeInstance(*row) for row in probe.int4fp8_cooperative_instances()]


def cooperative(
    problem: Problem,
    instance: CooperativeInstance,
    clusters: int = 1,
    out: type[np.generic] = np.float32,
    packed: npt.NDArray[np.uint8] | None = None,
    **options: Any,
) -> Result:
    """Run the cooperative kernel: `clusters` clusters share the tiles."""
    y = problem.output(out)
    report = probe.int4fp8_cooperative(
        problem.x,
        problem.packed() if packed is None else packed,
        problem.x_scale,
        problem.epilogue_into(y),
        y,
        x_sums=problem.x_sums() if instance.zero_points else None,
        expert_offsets=problem.expert_offsets,
        clusters=clusters,
        options=probe.Options(**options),
        **instance._asdict(),
    )
    return Result(y, report.findings)
