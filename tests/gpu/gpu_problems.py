"""Problems for the tests on the GPU: operands, and their float64 results."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import wlib
from wlib.reference import int4fp8 as reference


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
    """A problem on the CPU whose sums float32, and the tensor cores, represent exactly.

    Activations are integers up to 2 and scales powers of two, so that 128 products of any signs
    stay below 2^12 units: the tensor cores keep at least 13 bits when they add FP8 products.
    """
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=draw)

    groups = (n, k // group_size)
    bias = None if bias_dtype is None else (integers(-32, 32, n) / 4).to(bias_dtype)
    weight = wlib.Int4Weight(
        codes=integers(0, 255, n, k // 2).to(torch.uint8),
        group_scale=torch.exp2(integers(-1, 1, *groups).float()).bfloat16(),
        zero_point=integers(-8, 8, *groups) / 2 if zero_point else None,
        channel_scale=torch.exp2(integers(-1, 0, n).float()) if channel_scale else None,
    )
    x = integers(-2, 2, m, k).float().to(torch.float8_e4m3fn)
    return Problem(x, torch.exp2(integers(-1, 1, m).float()), weight, bias, out_dtype)


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
