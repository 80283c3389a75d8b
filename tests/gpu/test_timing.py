"""The benchmark harness on a GPU: graphs, events, and caches that are cold."""

import shutil

import pytest
import torch

from wlib.bench.environment import clocks
from wlib.bench.timing import measure, rotated_copies

CUDA = torch.device("cuda")


def test_a_call_four_times_as_long_takes_four_times_as_long() -> None:
    """Per call, however many calls a lap has; the device sleeps for a number of cycles."""
    calls = {
        "short": [lambda: torch.cuda._sleep(200_000)] * 3,
        "long": [lambda: torch.cuda._sleep(800_000)],
    }
    result = measure(calls, CUDA, budget_s=0.05)
    assert 50 < result["short"].median_us < 400
    assert result["long"].median_us / result["short"].median_us == pytest.approx(4, rel=0.1)


def test_rotated_weights_come_from_memory() -> None:
    """Reading one small weight again and again is faster than reading copies that fill L2 over."""
    weight = torch.randn(4 << 20, device=CUDA)
    copies = [weight.clone() for _ in range(rotated_copies(weight.nbytes, CUDA))]
    l2_bytes = torch.cuda.get_device_properties(CUDA).L2_cache_size
    assert len(copies) * weight.nbytes > 4 * l2_bytes
    calls = {"warm": [weight.sum] * len(copies), "cold": [copy.sum for copy in copies]}
    result = measure(calls, CUDA, budget_s=0.05)
    assert result["cold"].median_us > 1.2 * result["warm"].median_us


@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs nvidia-smi")
def test_clock_and_power_are_read() -> None:
    sm_clock_mhz, power_w = clocks(CUDA)
    assert 100 < sm_clock_mhz < 3000
    assert 10 < power_w < 2000
