"""What the rest builds on: the library finds the stream, wgmma honours E4M3 subnormals."""

import pytest
import torch
from gpu_problems import Problem, exact_problem

import wlib
from wlib._load import library_path, text


def test_this_library_has_kernels_for_this_gpu() -> None:
    major, minor = torch.cuda.get_device_capability()
    print(library_path(), text("wlib_build_id"), torch.cuda.get_device_name())
    assert f"sm_{major}{minor}a" in text("wlib_int4fp8_gemm_rows")


@pytest.mark.parametrize("first", range(0, 256, 64))
def test_every_code_times_every_e4m3_value(first: int) -> None:
    """One product per output, exact in float32; subnormals, 448 and both zeros among the values."""
    bits = torch.arange(first, first + 64, dtype=torch.uint8)
    bits[bits % 128 == 127] = 0  # NaN
    k = 128
    columns = torch.arange(64) * 37 % k
    x = torch.zeros(64, k, dtype=torch.uint8)
    x[torch.arange(64), columns] = bits
    codes = torch.arange(16, dtype=torch.uint8).repeat_interleave(k // 2).view(16, k // 2) * 17
    weight = wlib.Int4Weight(codes, torch.ones(16, 1, dtype=torch.bfloat16))
    problem = Problem(x.view(torch.float8_e4m3fn), torch.ones(64), weight, out_dtype=torch.float32)
    values = bits.view(torch.float8_e4m3fn).double()
    expected = torch.outer(values, torch.arange(16).sub(16 * (torch.arange(16) > 7)).double())
    torch.testing.assert_close(problem.expected().double(), expected, rtol=0, atol=0)
    y = problem.to("cuda").solve().cpu()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("m", [1, 16, 64])
def test_sums_of_subnormals(m: int) -> None:
    problem = exact_problem(m, 64, 1024, 128, out_dtype=torch.float32)
    bits = torch.randint(1, 8, problem.x.shape, generator=torch.Generator().manual_seed(m))
    bits += 128 * (bits % 2)  # half of them negative, so that the sums stay exact
    x = bits.to(torch.uint8).view(torch.float8_e4m3fn)
    problem = Problem(x, problem.x_scale, problem.weight, out_dtype=torch.float32)
    assert torch.equal(problem.to("cuda").solve().cpu(), problem.expected())


def test_the_op_runs_on_the_current_stream() -> None:
    """Held back on a side stream, the op must read what that stream wrote before it."""
    before, after = (exact_problem(16, 384, 512, 128, seed=seed).to("cuda") for seed in (1, 2))
    packed = after.weight.pack()
    expected = after.expected()
    x = before.x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(side):
        after.solve(
            packed
        )  # loads the kernel and gets memory: the next call needs to wait for neither
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        x.view(torch.uint8).copy_(after.x.view(torch.uint8))
        y = wlib.int4fp8_gemm(x, packed, after.x_scale)
    assert torch.cuda.default_stream().query(), "the op put work on the default stream"
    assert not side.query(), "the op waited for the device"
    side.synchronize()
    assert torch.equal(y, expected)
