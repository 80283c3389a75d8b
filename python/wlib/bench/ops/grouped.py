"""`int4fp8_gemm_grouped`: tokens sorted by expert, times each expert's weight."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...experts import int4fp8_gemm_grouped, pack_experts
from ...int4fp8 import Int4Weight
from ...quantizer import fp8_quantize
from ..accuracy import Accuracy, compare
from ..environment import wlib_version
from ..op import Arm, Op, Sizes, Target, Work, against, normal, spread

SAMPLE_TOKENS = 16


@dataclass(frozen=True)
class Routed:
    """x [T, K] sorted by expert, offsets int32 [E + 1], weights [E, N, K]; T = m * top_k."""

    x: Tensor
    offsets: Tensor
    weights: Tensor
    group_size: int

    def compare(self, y: Tensor, weight: Callable[[int], Tensor], x: Tensor) -> Accuracy:
        """Judge the outputs of some tokens; an arm's operands are `weight` of an expert and `x`."""
        tokens = spread(len(self.x), SAMPLE_TOKENS, y)
        experts = torch.searchsorted(self.offsets[1:].long(), tokens, right=True).tolist()
        pairs = list(zip(tokens.tolist(), experts, strict=True))
        stored = torch.stack([weight(e).double() @ x[t].double() for t, e in pairs])
        exact = torch.stack([self.weights[e].double() @ self.x[t].double() for t, e in pairs])
        return compare(y[tokens], stored, exact)


def _operands(sizes: Sizes, generator: torch.Generator) -> Routed:
    experts, n, k = (sizes[name] for name in ("experts", "n", "k"))
    tokens = sizes["m"] * sizes["top_k"]
    chosen = torch.randint(experts, (tokens,), generator=generator, device=generator.device)
    counts = torch.bincount(chosen, minlength=experts)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    weights = torch.stack([normal(generator, n, k) / k**0.5 for _ in range(experts)])
    return Routed(normal(generator, tokens, k), offsets, weights, sizes["group_size"])


class Grouped(Arm[Routed]):
    """`wlib.int4fp8_gemm_grouped` on quantised activations: one launch."""

    name = "wlib"
    dtype = "int4 x fp8"
    version = staticmethod(wlib_version)

    def prepare(self, operands: Routed) -> Work:
        """Quantise and pack every expert's weight, quantise the tokens."""
        weights = [Int4Weight.quantize(w, operands.group_size) for w in operands.weights]
        packed = pack_experts(weights)
        x, x_scale = fp8_quantize(operands.x)

        def call(data: Tensor) -> Tensor:
            rotated = replace(packed, data=data)
            return int4fp8_gemm_grouped(x, rotated, x_scale, operands.offsets)

        def check(y: Tensor) -> Accuracy:
            dequantized = x.double() * x_scale.double()[:, None]
            return operands.compare(y, lambda e: weights[e].dequantize(), dequantized)

        return Work(call, (packed.data,), check, (x, x_scale, operands.offsets))


class TorchLoop(Arm[Routed]):
    """A `torch.matmul` in BF16 per expert, with the offsets known to the host."""

    name = "torch_bf16_loop"
    dtype = "bf16 x bf16"

    def prepare(self, operands: Routed) -> Work:
        """Read the offsets once."""
        x, bounds = operands.x, operands.offsets.tolist()
        experts = range(len(operands.weights))

        def call(weights: Tensor) -> Tensor:
            parts = [x[bounds[e] : bounds[e + 1]] @ weights[e].t() for e in experts]
            return torch.cat(parts)

        def check(y: Tensor) -> Accuracy:
            return operands.compare(y, lambda e: operands.weights[e], x)

        return Work(call, (operands.weights,), check, (x,))


class TorchGrouped(TorchLoop):
    """`torch.nn.functional.grouped_mm` in BF16."""

    name = "torch_bf16_grouped"

    def prepare(self, operands: Routed) -> Work:
        """Take the ends of the experts' tokens from the offsets."""
        ends = operands.offsets[1:].contiguous()

        def call(weights: Tensor) -> Tensor:
            return torch.nn.functional.grouped_mm(operands.x, weights.transpose(1, 2), offs=ends)

        loop = super().prepare(operands)
        return Work(call, loop.stored, loop.check, loop.inputs)


OP = Op(
    name="int4fp8_grouped",
    sizes=("m", "top_k", "experts", "n", "k", "group_size"),
    operands=_operands,
    flops=lambda s: 2 * s["m"] * s["top_k"] * s["n"] * s["k"],
    arms=(Grouped, TorchLoop, TorchGrouped),
    targets=(Target("x the better torch_bf16", 1.6, 2.7, against("torch_bf16")),),
)
