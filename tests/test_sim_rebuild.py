"""The kernel of rebuilt weights in the simulator, against float64 and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import wlib
from rebuild_problems import OUT_TYPES, draw_layer, rebuild, simulated, stochastic_case
from sim_problems import to_bf16


@pytest.mark.parametrize("seed", range(12))
def test_exact_layers_match_bit_for_bit(seed: int) -> None:
    """Several layers of all forms, empty ones included, in few CTAs; tails everywhere."""
    rng = np.random.default_rng(seed)
    layers = [draw_layer(rng, int(form), OUT_TYPES[seed % 3]) for form in rng.permutation(4)]
    findings = simulated(layers, capacity=8, ctas=1 + seed % 3, seed=seed)
    assert findings == []
    for layer in layers:
        assert layer.is_exact()


def test_the_table_of_many_layers() -> None:
    rng = np.random.default_rng(1)
    layers = [draw_layer(rng, form % 4, np.float32, small=True) for form in range(12)]
    assert simulated(layers, capacity=280, ctas=2) == []
    for layer in layers:
        assert layer.is_exact()


@pytest.mark.parametrize("form", range(4))
def test_stochastic_rounding_gives_the_bits_of_the_cpu(form: int) -> None:
    """Operands whose sums are exact, a base that has to be rounded."""
    layers = [stochastic_case(np.random.default_rng(form), form, n) for n in (24, 28)]
    assert simulated(layers, capacity=8, ctas=2, rounding_seed=5) == []
    w0 = [torch.from_numpy(layer.w0) for layer in layers]
    operands = [torch.from_numpy(a) for layer in layers for a in layer.operands]
    expected = torch.ops.wlib.rebuild(
        w0, operands, [form] * 2, [0.5] * 2, out_dtype=torch.bfloat16, seed=5
    )
    for layer, exact in zip(layers, expected, strict=True):
        np.testing.assert_array_equal(layer.out, to_bf16(exact.float().numpy()))


@pytest.mark.parametrize("capacity", [8])
def test_result_does_not_depend_on_the_schedule(capacity: int) -> None:
    rng = np.random.default_rng(3)
    layer = draw_layer(rng, 1, np.float32)
    layer.operands = [rng.standard_normal(a.shape).astype(np.float32) for a in layer.operands]
    results = set()
    options: Any
    for options in ({"seed": 1}, {"seed": 2, "preempt_every": 300}, {"seed": 3}):
        assert simulated([layer], capacity=capacity, ctas=2, **options) == []
        results.add(layer.out.tobytes())
    assert len(results) == 1


def test_random_layers_agree_with_the_cpu() -> None:
    """Fused multiply-adds round less often than the CPU's: at most once per term and result."""
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((70, 33), (33, 140)))
    out = rebuild(None, [a, b], 0, 0.5)
    cpu = wlib.rebuild.lora(None, torch.from_numpy(b), torch.from_numpy(a), 0.5).numpy()
    bound = 2 * 34 * 2.0**-24 * 0.5 * (np.abs(a) @ np.abs(b))
    assert (np.abs(out - cpu) <= bound).all()
