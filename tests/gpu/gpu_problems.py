"""Problems for the tests on the GPU: operands, and their float64 results."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import wlib
from wlib.reference import exact
from wlib.reference import int4fp8 as reference

TILES = {  # of more than 64 tokens on 132 SMs: m, n, k that take them, with tails of each
    "128x128 ping-pong": (1000, 1030, 256),
    "256x128 in pairs": (1300, 2600, 256),
}


@dataclass(frozen=True)
class Problem:
    """Operands of one `int4fp8_gemm`, all on one device."""

    x: Tensor  # float8_e4m3fn [M, K]
    x_scale: Tensor  # float32 [M]
    weight: wlib.Int4Weight
    bias: Tensor | None = None
    out_dtype: torch.dtype = torch.bfloat16

    def to(self, device: str) -> "Problem":
        """The same problem on another device."""
        w = self.weight
        optional = (w.zero_point, w.channel_scale, self.bias)
        zero_point, channel_scale, bias = (t if t is None else t.to(device) for t in optional)
        weight = wlib.Int4Weight(
            w.codes.to(device), w.group_scale.to(device), zero_point, channel_scale
        )
        return Problem(self.x.to(device), self.x_scale.to(device), weight, bias, self.out_dtype)

    def first(self, m: int) -> "Problem":
        """The problem of the first `m` tokens."""
        return replace(self, x=self.x[:m], x_scale=self.x_scale[:m])

    def solve(self, packed: wlib.PackedInt4Weight | None = None) -> Tensor:
        """The op's answer."""
        return wlib.int4fp8_gemm(
            self.x, packed or self.weight.pack(), self.x_scale, self.bias, self.out_dtype
        )

    def reference(self) -> reference.Reference:
        """The float64 answer."""
        return reference.int4fp8_gemm(self.x, self.weight, self.x_scale, self.bias)

    def expected(self) -> Tensor:
        """The float64 answer, rounded once."""
        return self.reference().y.to(self.out_dtype)


def exact_problem(
    m: int,
    n: int,
    k: int,
    group_size: int,
    *,
    zero_point: bool = False,
    channel_scale: bool = False,
    bias_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Problem:
    """A problem of `wlib.reference.exact` on the CPU, without what is not asked for."""
    draw = torch.Generator().manual_seed(seed)
    exact_one = exact.problem(m, n, k, group_size, zero_point=zero_point, generator=draw)
    weight = exact_one.weight if channel_scale else replace(exact_one.weight, channel_scale=None)
    bias = None if bias_dtype is None else exact_one.bias.to(bias_dtype)
    return Problem(exact_one.x, exact_one.x_scale, weight, bias, out_dtype)


def random_problem(
    m: int, n: int, k: int, group_size: int, *, zero_point: bool = False, seed: int = 0
) -> Problem:
    """A problem on the GPU with normal operands, as a layer of a model has them; float32 output."""
    draw = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device="cuda")

    weight = wlib.Int4Weight.quantize(normal(n, k) / k**0.5, group_size)
    if zero_point:
        weight = replace(weight, zero_point=normal(n, k // group_size))
    x, x_scale = wlib.fp8_quantize(normal(m, k))
    return Problem(x, x_scale, weight, normal(n), torch.float32)
