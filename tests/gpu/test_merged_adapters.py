"""An adapter merged on the GPU makes the weights that it makes on the CPU."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from wlib.formats import Adapter, LohaDelta, LokrDelta, LoraDelta, TuckerDelta, merge_adapter


def draw(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()  # whose sums are exact on both


def test_weights_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    deltas = {
        "0": LoraDelta(0.75, draw(4, 16), draw(24, 4)),
        "1": LohaDelta(0.5, draw(24, 4), draw(4, 24), draw(24, 4), draw(4, 24)),
        "2": LokrDelta(1.5, w1=draw(2, 4), w2_a=draw(4, 4), w2_b=draw(4, 6)),
        "3": TuckerDelta(1.0, draw(3, 2, 2), (draw(8, 3), draw(6, 2), draw(5, 2))),
    }
    layers = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 8), nn.Conv1d(8, 6, 5)
    model = nn.Sequential(*layers).bfloat16()
    on_gpu = copy.deepcopy(model).cuda()
    before = [parameter.clone() for parameter in on_gpu.parameters()]
    merge_adapter(model, Adapter("any", deltas), 0.5)
    merged = merge_adapter(on_gpu, Adapter("any", deltas), 0.5)
    for mine, theirs in zip(on_gpu.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine.cpu(), theirs)
    merged.unmerge()
    for mine, old in zip(on_gpu.parameters(), before, strict=True):
        assert torch.equal(mine, old)
