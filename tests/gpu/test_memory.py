"""What the kernels read and write: nothing outside, no 32-bit offsets, nothing they refuse."""

import pytest
import torch
from gpu_problems import Problem, exact_problem

import wlib

GUARD = 128  # elements on either side of an output


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n", [1, 63, 65, 257])
@pytest.mark.parametrize("m", [1, 9, 33, 65])
def test_guard_bands(m: int, n: int, out_dtype: torch.dtype) -> None:
    problem = exact_problem(m, n, 384, 128, out_dtype=out_dtype).to("cuda")
    memory = torch.full((m * n + 2 * GUARD,), torch.nan, dtype=out_dtype, device="cuda")
    out = memory[GUARD : GUARD + m * n].view(m, n)
    result = wlib.int4fp8_gemm(problem.x, problem.weight.pack(), problem.x_scale, out=out)
    assert result.data_ptr() == out.data_ptr()
    assert torch.equal(out, problem.expected())
    assert memory[:GUARD].isnan().all()
    assert memory[GUARD + m * n :].isnan().all()


def test_rows_of_a_wider_matrix() -> None:
    problem = exact_problem(33, 65, 256, 64).to("cuda")
    wide = torch.full((33, 512), 0x7F, dtype=torch.uint8, device="cuda")  # NaN
    x = wide[:, 128:384]
    x.copy_(problem.x.view(torch.uint8))
    y = wlib.int4fp8_gemm(x.view(torch.float8_e4m3fn), problem.weight.pack(), problem.x_scale)
    assert torch.equal(y, problem.expected())


@pytest.mark.parametrize("m", [0, 1])
@pytest.mark.parametrize("lead", [(), (2, 0, 3), (2, 3)])
def test_empty_and_more_dimensions(lead: tuple[int, ...], m: int) -> None:
    problem = exact_problem(1, 65, 128, 128).to("cuda")
    x = problem.x.view(torch.uint8).expand(*lead, m, 128).contiguous().view(torch.float8_e4m3fn)
    x_scale = problem.x_scale.expand(*lead, m).contiguous()
    y = wlib.int4fp8_gemm(x, problem.weight.pack(), x_scale)
    assert torch.equal(y, problem.expected().expand(*lead, 1, 65).expand(*lead, m, 65)[..., :m, :])
    codes, scale = wlib.fp8_quantize(torch.ones(*lead, m, 128, device="cuda"))
    assert codes.shape == x.shape
    assert scale.shape == x_scale.shape


@pytest.mark.parametrize("argument", ["x", "weight", "out"])
def test_misaligned_storage_is_refused(argument: str) -> None:
    problem = exact_problem(4, 64, 128, 128).to("cuda")

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.new_zeros(tensor.numel() + 1)
        return memory[1:].view(tensor.shape)

    tensors = {"x": problem.x, "weight": problem.weight.pack().data, "out": problem.expected()}
    tensors[argument] = shifted(tensors[argument])
    with pytest.raises(ValueError, match=rf"\(argument '{argument}'\)"):
        torch.ops.wlib.int4fp8_gemm.out(
            tensors["x"],
            tensors["weight"],
            problem.x_scale,
            n=64,
            group_size=128,
            out=tensors["out"],
        )


def test_group_sums_refuse_misaligned_rows() -> None:
    codes = torch.zeros(4 * 128 + 16, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    for xq in (codes[8:264].view(2, 128), codes[:512].view(2, 256)[:, 8:136]):
        with pytest.raises(ValueError, match=r"at a 16-byte aligned address.*\(argument 'xq'\)"):
            wlib.fp8_group_sums(xq, 128)
    with pytest.raises(ValueError, match="rows of xq a multiple of 16 elements apart, got 136"):
        wlib.fp8_group_sums(codes[:272].view(2, 136)[:, :128], 128)


def test_operands_on_two_devices_are_refused() -> None:
    problem = exact_problem(4, 64, 128, 128)
    with pytest.raises(ValueError, match=r"\(argument 'weight'\)"):
        wlib.int4fp8_gemm(problem.x.cuda(), problem.weight.pack(), problem.x_scale.cuda())


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(65_600, 32_768, 128), (65_600, 1, 32_768), (3, 131_136, 32_768)],
    ids=("output", "activations", "weight"),
)
def test_beyond_2_to_31_elements(m: int, n: int, k: int) -> None:
    """The last rows and columns lie where a 32-bit offset has wrapped."""
    needed = 24 * n * k // 2 + 5 * m * k + 4 * m * n
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of device memory")
    draw = torch.Generator("cuda").manual_seed(n)
    codes = torch.randint(256, (n, k // 2), dtype=torch.uint8, device="cuda", generator=draw)
    weight = wlib.Int4Weight(codes, torch.ones(n, 1, dtype=torch.bfloat16, device="cuda"))
    x = torch.randint(-2, 3, (m, k), dtype=torch.int8, device="cuda", generator=draw)
    x = x.half().to(torch.float8_e4m3fn)
    x_scale = torch.ones(m, device="cuda")
    y = Problem(x, x_scale, weight).solve()
    assert max(x.numel(), y.numel(), codes.numel()) > 2**31 - 1
    for rows in (slice(0, 3), slice(m - 3, m)):
        for columns in (slice(0, 64), slice(max(0, n - 64), n)):
            part = wlib.Int4Weight(codes[columns], weight.group_scale[columns])
            corner = Problem(x[rows], x_scale[rows], part)
            assert torch.equal(y[rows, columns], corner.expected()), (rows, columns)
