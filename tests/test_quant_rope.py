"""RoPE-aware scaling of keys: scores stay, outliers go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wlib.quant import key_factors, smooth_keys

HIDDEN, KV_HEADS, HEAD_DIM = 128, 2, 32


def rotate(x: Tensor) -> Tensor:
    """RoPE of [..., T, heads, D]."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-3], dtype=x.dtype)[:, None, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def outlier_keys() -> Tensor:
    """Keys [2, 40, Hkv, D] before RoPE with unequal pairs and an outlier channel per head."""
    torch.manual_seed(3)
    keys = torch.randn(2, 40, KV_HEADS, HEAD_DIM, dtype=torch.float64)
    keys *= torch.linspace(-1, 1, HEAD_DIM // 2).exp().repeat(2)
    keys[:, :, 0, 15] += 30  # turns slowly: an outlier after RoPE, too
    keys[:, :, 1, 31] -= 20
    return keys


def outlier_ratio(keys: Tensor) -> float:
    """Largest over mean of the channels' largest values, the worst head's."""
    largest = keys.detach().abs().amax(dim=(0, 1))
    return float((largest.amax(dim=1) / largest.mean(dim=1)).max())


def test_key_factors_even_out_channels_and_commute_with_rope() -> None:
    keys = outlier_keys()
    before, after = key_factors(keys, rotate, top_k=1)
    half = HEAD_DIM // 2
    assert torch.equal(before[:, :half], before[:, half:])
    torch.testing.assert_close(rotate(keys * before), rotate(keys) * before)
    assert (after[0] != 1).nonzero().flatten().tolist() == [15, 31]
    assert (after[1] != 1).nonzero().flatten().tolist() == [15, 31]
    assert (before[after != 1] == 1).all()
    smooth = rotate(keys * before) * after
    assert outlier_ratio(rotate(keys)) > 6
    assert outlier_ratio(smooth) < 1.5
    without = key_factors(keys, rotate, top_k=0)
    assert (without[1] == 1).all()
    assert outlier_ratio(rotate(keys * without[0])) > outlier_ratio(smooth)


@pytest.mark.parametrize("heads", [2, 6])
def test_smoothed_keys_leave_the_scores(heads: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 40, HIDDEN, dtype=torch.float64)
    q_proj = nn.Linear(HIDDEN, heads * HEAD_DIM).double()
    k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM).double()
    with torch.no_grad():
        k_proj.bias[15] += 20

    def project(linear: nn.Linear) -> Tensor:
        return rotate(linear(x).unflatten(-1, (-1, HEAD_DIM))).detach()

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bshd,bthd->bhst", q, k.repeat_interleave(heads // KV_HEADS, dim=2))

    q, k = project(q_proj), project(k_proj)
    k_smooth = smooth_keys(q_proj, k_proj, k_proj(x).unflatten(-1, (-1, HEAD_DIM)), rotate)
    assert k_smooth.shape == (KV_HEADS, HEAD_DIM)
    smooth_q, smooth_k = project(q_proj), project(k_proj) * k_smooth
    smooth_q = smooth_q / k_smooth.repeat_interleave(heads // KV_HEADS, dim=0)
    assert (smooth_k - k).norm() > 0.1 * k.norm()
    torch.testing.assert_close(scores(smooth_q, smooth_k), scores(q, k), rtol=1e-6, atol=1e-6)
    assert outlier_ratio(smooth_k) < 0.5 * outlier_ratio(k)


def test_dead_keys_get_finite_factors() -> None:
    before, after = key_factors(torch.zeros(1, 4, 2, 8), rotate)
    assert (before == 1).all()
    assert (after == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"keys": torch.zeros(4, 8)}, "keys of shape"),
        (lambda a: a | {"keys": torch.zeros(2, 4, 2, 7)}, "D even"),
        (lambda a: a | {"top_k": 33}, r"top_k in 0\.\.32, got 33"),
        (lambda a: a | {"k_proj": nn.Linear(8, 32)}, r"k_proj with 2 \* 32 outputs, got 32"),
        (lambda a: a | {"q_proj": nn.Linear(8, 96)}, r"multiple of 2 \* 32 outputs, got 96"),
    ],
)
def test_smooth_keys_refuses_what_does_not_fit(
    change: Callable[[dict[str, object]], dict[str, object]], message: str
) -> None:
    arguments = {
        "q_proj": nn.Linear(8, 128),
        "k_proj": nn.Linear(8, 64),
        "keys": torch.randn(2, 4, 2, 32),
        "rotate": rotate,
        "top_k": 3,
    }
    with pytest.raises(ValueError, match=message):
        smooth_keys(**change(arguments))
