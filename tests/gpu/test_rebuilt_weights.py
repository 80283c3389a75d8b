"""Rebuilt weights on the GPU: the problems of the simulator."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rebuild_problems import OUT_TYPES, as_float, draw_layer

DTYPES = dict(zip(OUT_TYPES, (torch.float32, torch.bfloat16, torch.float16), strict=True))


def on_gpu(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(as_float(stored)).to(DTYPES[stored.dtype.type]).cuda()


@pytest.mark.parametrize("seed", range(12))
def test_exact_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = OUT_TYPES[seed % 3]
    for form in range(4):
        layers = [draw_layer(rng, form, out) for _ in range(1 + seed * 30)]
        layers = [layer for layer in layers if (layer.w0 is None) == (layers[0].w0 is None)]
        w0 = [on_gpu(layer.w0) for layer in layers if layer.w0 is not None]
        operands = [on_gpu(a) for layer in layers for a in layer.operands]
        got = torch.ops.wlib.rebuild(
            w0, operands, [form] * len(layers), [0.5] * len(layers), out_dtype=DTYPES[out]
        )
        for layer, y in zip(layers, got, strict=True):
            expected = torch.from_numpy(as_float(layer.expected()))
            assert torch.equal(y.cpu().double(), expected)


@pytest.mark.parametrize("form", range(4))
def test_stochastic_rounding_gives_the_bits_of_the_cpu(form: int) -> None:
    layer = draw_layer(np.random.default_rng(form), form, np.float32, size=(24, 36, 4))
    operands = [on_gpu(a) for a in layer.operands]
    w0 = torch.randint(-(2**13), 2**13, (24, 36)) * 2.0**-10
    arguments = ([form], [0.5])
    got = torch.ops.wlib.rebuild(
        [w0.cuda()], operands, *arguments, out_dtype=torch.bfloat16, seed=5
    )
    expected = torch.ops.wlib.rebuild(
        [w0], [a.cpu() for a in operands], *arguments, out_dtype=torch.bfloat16, seed=5
    )
    assert torch.equal(got[0].cpu(), expected[0])
