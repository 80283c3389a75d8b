"""fp4_matmul on the GPU against the float64 product of the dequantised operands, and the CPU."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import wlib

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 32), (128, 256, 128), (257, 300, 160), (1000, 1030, 1056), (3000, 520, 4096))
# format of a and b, what they hold, mode
KINDS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("mxfp4", "mxfp4", ("carrier_e4m3",), ("carrier_e4m3",), "fold8"),
    ("mxfp4", "mxfp4", ("carrier_e5m2",), ("carrier_e4m3",), "fold8"),
    ("mxfp4", "mxfp4", ("carrier_e4m3",), ("carrier_e5m2",), "fold8"),
    ("mxfp4", "mxfp4", ("carrier_e5m2",), ("carrier_e5m2",), "fold8"),
    ("mxfp4", "mxfp4", ("fp4",), ("fp4",), "fold8"),
    ("mxfp4", "mxfp4", ("fp4",), ("fp4",), "bf16"),
    ("nvfp4", "nvfp4", ("fp4",), ("fp4",), "bf16"),
    ("nvfp4", "mxfp4", ("fp4",), ("fp4",), "bf16"),
    ("mxfp4", "mxfp4", ("fp4",), ("fp4",), "exact32"),
)


def to_cuda(q: wlib.FP4Tensor) -> wlib.FP4Tensor:
    fields: dict[str, Any] = {f.name: getattr(q, f.name) for f in dataclasses.fields(q)}
    return wlib.FP4Tensor(
        **{k: v.cuda() if isinstance(v, Tensor) else v for k, v in fields.items()}
    )


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole(*shape: int) -> Tensor:
    """Small whole numbers: every partial sum is exact."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def exact(a: wlib.FP4Tensor, b: wlib.FP4Tensor) -> tuple[Tensor, Tensor]:
    """The product in float64 and that of the magnitudes, on the GPU."""
    left, right = (q.dequantize().cuda().double() for q in (a, b))
    return left @ right.T, left.abs() @ right.abs().T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_within_the_bound(kind: Any, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a = wlib.fp4_quantize(normal(m, k), kind[0], emit=kind[2])
    b = wlib.fp4_quantize(normal(n, k), kind[1], emit=kind[3])
    expected, magnitude = exact(a, b)
    # FP8 accumulators keep 13 bits below the largest addend of a wgmma, of which 128 K have four.
    relative = 2.0**-11 if kind[4] == "fold8" else (k + 8) * 2.0**-24
    for dtype in DTYPES:
        y = wlib.fp4_matmul(to_cuda(a), to_cuda(b), 0.75, dtype, kind[4])
        info = torch.finfo(dtype)
        bound = relative * magnitude + expected.abs() * info.eps + info.tiny
        assert ((y.double() - 0.75 * expected).abs() <= bound).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] == k[1] == "mxfp4"], ids=str)
def test_whole_numbers_are_exact(kind: Any) -> None:
    a = wlib.fp4_quantize(whole(300, 416), emit=kind[2])
    b = wlib.fp4_quantize(whole(530, 416), emit=kind[3])
    y = wlib.fp4_matmul(to_cuda(a), to_cuda(b), 1.0, torch.float32, kind[4])
    assert torch.equal(y.double(), exact(a, b)[0])


def test_exact32_has_the_bits_of_the_cpu() -> None:
    a, b = (wlib.fp4_quantize(normal(rows, 704)) for rows in (150, 90))
    on_cpu = wlib.fp4_matmul(a, b, 0.3, torch.float32, "exact32")
    on_gpu = wlib.fp4_matmul(to_cuda(a), to_cuda(b), 0.3, torch.float32, "exact32")
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("spread", [0, 14, 29, 60])
def test_scales_that_span_more_than_a_carrier(spread: int) -> None:
    """Blocks of a and b whose scales cancel: all products count alike. BF16 serves wide ones."""
    factors = torch.exp2(-torch.arange(12.0) * spread / 11).repeat_interleave(32)
    a = wlib.fp4_quantize(whole(150, 384) * factors)
    b = wlib.fp4_quantize(whole(270, 384) / factors)
    expected, magnitude = exact(a, b)
    y = wlib.fp4_matmul(to_cuda(a), to_cuda(b), out_dtype=torch.float32)
    assert ((y - expected).abs() <= 2.0**-11 * magnitude).all()


def test_runs_agree_bit_for_bit_and_replay_in_a_graph() -> None:
    a, b = (to_cuda(wlib.fp4_quantize(normal(rows, 1056))) for rows in (700, 900))
    first = wlib.fp4_matmul(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = wlib.fp4_matmul(a, b)
    for _ in range(5):
        assert torch.equal(wlib.fp4_matmul(a, b), first)
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, first)


def test_what_no_kernel_serves() -> None:
    mx, carrier = (
        to_cuda(wlib.fp4_quantize(normal(4, 64), emit=(emit,))) for emit in ("fp4", "carrier_e4m3")
    )
    nv = to_cuda(wlib.fp4_quantize(normal(4, 48), "nvfp4"))
    refused = "wlib::fp4_matmul: no kernel for "
    with pytest.raises(NotImplementedError, match=f"^{refused}a carrier times packed codes$"):
        wlib.fp4_matmul(mx, carrier)
    with pytest.raises(NotImplementedError, match=f"^{refused}carriers in mode 'bf16'"):
        wlib.fp4_matmul(carrier, carrier, mode="bf16")
    with pytest.raises(NotImplementedError, match=f"^{refused}rows that are no multiple of 32"):
        wlib.fp4_matmul(nv, nv)
