"""Mode block_scaled of fp4_matmul: what it computes on the CPU, and that CUTLASS's own layouts and
number types read the operands as we wrote them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import wlib_probe
from torch import Tensor

import wlib
from op_samples.fp4 import linear_samples
from wlib import _block_scaled
from wlib._ops import fp4_linear as ops_fp4_linear
from wlib.fp4_recipe import RECIPES

FORMATS = ("mxfp4", "nvfp4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize(rows: int, k: int, format: str = "mxfp4") -> wlib.FP4Tensor:
    x = torch.randn(rows, k) * torch.exp2(torch.randint(-9, 9, (rows, 1)))
    return wlib.fp4_quantize(x, format, swizzle="128x4")


def units(q: wlib.FP4Tensor) -> Tensor:
    """The values without the global scale."""
    one = None if q.global_scale is None else torch.ones(())
    return dataclasses.replace(q, global_scale=one).dequantize()


def moved(q: wlib.FP4Tensor, device: str) -> wlib.FP4Tensor:
    tensors = {name: t.to(device) for name, t in vars(q).items() if isinstance(t, Tensor)}
    return dataclasses.replace(q, **tensors)


def has_kernel() -> bool:
    """Whether there is a Blackwell GPU, and code for it."""
    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return major >= 10 and f"sm_{major}{minor}a" in wlib.info().cuda_kernels


BLACKWELL = pytest.mark.skipif(not has_kernel(), reason="needs a Blackwell GPU and code for it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_no_gpu_is_served_where_there_is_none() -> None:
    """Layers are traced for one there, too."""
    assert not _block_scaled.serves(torch.device("cuda"))


@pytest.mark.parametrize("is_b", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (128, 128), (129, 160), (300, 416), (512, 1024)])
def test_cutlass_reads_every_element_as_it_was_written(
    rows: int, k: int, format: str, is_b: bool
) -> None:
    q = quantize(rows, k, format)
    assert q.codes is not None
    assert q.scales is not None
    scales = q.scales.view(torch.uint8)
    read = wlib_probe.cutlass_dequantize(q.codes.numpy(), scales.numpy(), format == "nvfp4", is_b)
    assert torch.equal(torch.from_numpy(read), units(q))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=BLACKWELL)])
def test_values(format: str, out_dtype: torch.dtype, device: str) -> None:
    a, b = quantize(33, 320, format), quantize(136, 320, format)
    y = wlib.fp4_matmul(moved(a, device), moved(b, device), 0.75, out_dtype, "block_scaled").cpu()
    left, right = a.dequantize().double(), b.dequantize().double()
    exact = 0.75 * left @ right.T
    # 320 additions, the scales and alpha in float32; one rounding to the output type.
    bound = 328 * 2.0**-24 * (left.abs() @ right.abs().T)
    info = torch.finfo(out_dtype)
    bound = bound + (exact.abs() + bound) * info.eps / 2 + info.tiny
    large = exact.abs() > info.max
    assert y.dtype == out_dtype
    assert (((y.double() - exact).abs() <= bound) | large).all()
    assert y[large].isinf().all()


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_the_same_matmul_as_with_scales_in_rows(format: str) -> None:
    x, w = torch.randn(40, 96), torch.randn(16, 96)
    a, b = (wlib.fp4_quantize(t, format, swizzle="128x4") for t in (x, w))
    rows = wlib.fp4_matmul(wlib.fp4_quantize(x, format), wlib.fp4_quantize(w, format))
    assert torch.equal(wlib.fp4_matmul(a, b), rows)  # auto


def test_auto_prefers_carriers() -> None:
    q = wlib.fp4_quantize(torch.randn(7, 64), emit=("fp4", "carrier_e4m3"), swizzle="128x4")
    assert wlib.fp4_matmul(q, q).shape == (7, 7)  # which block_scaled refuses


def test_of_nothing() -> None:
    some, none = quantize(8, 64), quantize(8, 0)
    assert wlib.fp4_matmul(quantize(0, 64), some).shape == (0, 8)
    assert wlib.fp4_matmul(some, quantize(0, 64)).shape == (8, 0)
    assert torch.equal(wlib.fp4_matmul(none, none), torch.zeros(8, 8, dtype=torch.bfloat16))


def test_a_nan_reaches_its_row() -> None:
    x = torch.randn(3, 64)
    x[1, 7] = torch.nan
    nan = wlib.fp4_matmul(wlib.fp4_quantize(x, swizzle="128x4"), quantize(8, 64)).isnan()
    assert nan[1].all()
    assert nan.sum() == 8


def layer(name: str, m: int, k: int, n: int) -> list[Tensor]:
    """y, dX and dW by a recipe."""
    make = torch.Generator().manual_seed(m)
    x, w, dy = (torch.randn(*size, generator=make) for size in ((m, k), (n, k), (m, n)))
    leaves = x.requires_grad_(), w.requires_grad_()
    y = wlib.fp4_linear(*leaves, recipe=name, state=wlib.fp4_state(3))
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_multiply_the_same_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU has this mode too: a layer as on Blackwell, odd sizes, against one with carriers."""
    expected = layer(name, 37, 50, 19)
    modes = []
    multiply = _block_scaled.multiply
    monkeypatch.setattr(_block_scaled, "serves", lambda device: True)
    monkeypatch.setattr(
        _block_scaled, "multiply", lambda *args: modes.append(name) or multiply(*args)
    )
    for got, plain in zip(layer(name, 37, 50, 19), expected, strict=True):
        # Sums of the same products, at most 128 of them, in another order.
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-4 * plain.abs().max().item())
    assert len(modes) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_give_the_bits_of_scales_in_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as rows:
        rows.setattr(ops_fp4_linear, "_takes_carriers", lambda *_: False)
        expected = layer(name, 137, 208, 72)
    monkeypatch.setattr(_block_scaled, "serves", lambda device: True)
    for got, plain in zip(layer(name, 137, 208, 72), expected, strict=True):
        assert torch.equal(got, plain)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_multiply_what_the_quantiser_wrote(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of scales or codes before a product: only to requantise, scales go back to rows."""
    written: list[Tensor] = []  # kept, so that no other tensor takes their memory
    read: list[Tensor] = []
    turned = []

    def writes(op: Any) -> Any:
        def call(*args: Any, **options: Any) -> list[Tensor]:
            out: list[Tensor] = op(*args, **options)
            written.extend(out)
            return out

        return call

    def matmul(*args: Any, op: Any = torch.ops.wlib.fp4_matmul, **options: Any) -> Tensor:
        read.extend(args[:4])
        return op(*args, **options)  # type: ignore[no-any-return]

    def rows(q: wlib.FP4Tensor, turn: Any = ops_fp4_linear.row_major_scales) -> Tensor:
        turned.append(q.swizzled)
        return turn(q)  # type: ignore[no-any-return]

    for op in ("fp4_quantize", "fp4_requantize_t"):
        monkeypatch.setattr(torch.ops.wlib, op, writes(getattr(torch.ops.wlib, op)))
    monkeypatch.setattr(torch.ops.wlib, "fp4_matmul", matmul)
    monkeypatch.setattr(ops_fp4_linear, "row_major_scales", rows)
    monkeypatch.setattr(_block_scaled, "serves", lambda device: True)
    layer(name, 137, 208, 72)
    assert len(read) == 3 * 4
    assert {t.data_ptr() for t in read} <= {t.data_ptr() for t in written}
    # W_q, and X_q where dW sees that: docs/design/fp4_blackwell.md counts them.
    assert turned == [True] * (2 if RECIPES[name].requantize_x else 1)


@pytest.mark.parametrize("index", range(len(linear_samples())))
def test_compilers_are_told_of_this_order(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_block_scaled, "serves", lambda device: True)
    op, arguments, _ = linear_samples()[index]
    overload = getattr(torch.ops.wlib, op.removesuffix(".default")).default
    results = torch.library.opcheck(overload, arguments, test_utils="test_faketensor")
    assert set(results.values()) == {"SUCCESS"}


def test_which_devices_are_served() -> None:
    assert not _block_scaled.serves(torch.device("cpu"))
    rows = _block_scaled._ROWS
    for arch in ("sm_100a", "sm_120a"):
        built = arch in wlib.info().cuda_kernels
        assert (f"{arch}, mode block_scaled" in rows) == built
