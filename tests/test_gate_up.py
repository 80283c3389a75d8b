"""The fused first half of a gated MLP against two layers and a product."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wlib
from wlib.nn import Int4Fp8GateUp, Int4Fp8Linear
from wlib.reference import int4fp8 as reference

F, K = 70, 256


def layer(
    n: int = F, zero_point: bool = False, channel_scale: bool = False, **options: Any
) -> Int4Fp8Linear:
    weight = wlib.Int4Weight.quantize(torch.randn(n, K) / 16, 64)
    zeros = torch.randn(n, K // 64) if zero_point else None
    channels = torch.rand(n) + 0.5 if channel_scale else None
    weight = wlib.Int4Weight(weight.codes, weight.group_scale, zeros, channels)
    return Int4Fp8Linear.from_weight(weight, **options)


def assert_same_product(fused: Int4Fp8GateUp, gate: Int4Fp8Linear, up: Int4Fp8Linear) -> None:
    """Sums are the same; what follows differs by a few roundings."""
    for m in (1, 40):
        x = torch.randn(m, 3, K)
        expected = nn.functional.silu(gate(x)) * up(x)
        torch.testing.assert_close(fused(x), expected, rtol=2.0**-20, atol=1e-30)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"zero_point": True},
    {"channel_scale": True},
    {"bias": torch.randn(F)},
    {"zero_point": True, "channel_scale": True, "bias": torch.randn(F)},
]


@pytest.mark.parametrize("gate_options", OPTIONS)
@pytest.mark.parametrize("up_options", OPTIONS)
def test_equals_two_layers(gate_options: dict[str, Any], up_options: dict[str, Any]) -> None:
    gate, up = layer(**gate_options), layer(**up_options)
    assert_same_product(Int4Fp8GateUp.from_linears(gate, up), gate, up)


def test_shares_the_order_of_columns() -> None:
    order = torch.randperm(K).int()
    gate, up = (layer(k_permutation=order) for _ in range(2))
    assert_same_product(Int4Fp8GateUp.from_linears(gate, up), gate, up)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), fused or not."""

    def __init__(self, gate: Int4Fp8Linear, up: Int4Fp8Linear, down: Int4Fp8Linear) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down
        self.gate_up = Int4Fp8GateUp.from_linears(gate, up)

    def forward(self, x: Tensor, fused: bool) -> Tensor:
        inner = self.gate_up(x) if fused else nn.functional.silu(self.gate(x)) * self.up(x)
        y: Tensor = self.down(inner)
        return y


@pytest.mark.parametrize("m", [3, 33])
def test_mlp_is_within_the_bound_of_its_reference(m: int) -> None:
    mlp = GatedMlp(layer(128), layer(128), Int4Fp8Linear.from_linear(nn.Linear(128, 48)))
    x = torch.randn(m, K)
    xq, xs = wlib.fp8_quantize(x)
    rows = mlp.gate_up.rows
    inner = mlp.gate_up(x)
    exact = reference.int4fp8_gemm(xq, rows.packed.unpack(), xs, activation="silu_mul")
    assert ((inner.double() - exact.y).abs() <= exact.bound(K, torch.float32)).all()
    # A last bit of the inner activations can move an FP8 code by a step of 1/16.
    fused, apart = mlp(x, fused=True), mlp(x, fused=False)
    assert (fused - apart).norm() <= 1e-2 * apart.norm()


def test_compiles_and_copies() -> None:
    fused = Int4Fp8GateUp.from_linears(layer(), layer())
    x = torch.randn(5, K, dtype=torch.bfloat16)
    assert torch.equal(torch.compile(fused, fullgraph=True)(x), fused(x))
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))
    other = Int4Fp8GateUp.from_linears(layer(), layer())
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(x), fused(x))
