"""Small problems for compute-sanitizer: a few launches per case and nothing of torch in between.

Usage: python sanitizer_cases.py [cuda | cpu]
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_problems import TILES, Problem, exact_problem

import wlib

CASES = (  # m, n, k, group_size, zero_point
    (1, 1, 32, 32, False),
    (8, 65, 128, 128, False),
    (9, 64, 384, 64, True),
    (17, 129, 1024, 128, False),
    (33, 64, 2048, 32, True),
    (64, 200, 512, 128, False),
    (70, 64, 256, 64, False),
    *((*shape, 128, False) for shape in TILES.values()),
    *((*shape, 64, True) for shape in TILES.values()),
)
LINEAR_CASES = ((1, 1, 1, 16), (70, 5, 200, 208), (3, 130, 9, 80), (33, 5, 200, 160))  # m, s, n, k
NV = {"format": "nvfp4", "scale_rule": "amax"}
FP4_CASES: dict[str, dict[str, Any]] = {
    "carrier": {"carrier": "e4m3", "hadamard": 32, "swizzle": True, "mask": True},
    "ms_eden": {**NV, "rounding": "ms_eden", "seed": torch.tensor([1, 2]), "swizzle": True},
    "square": {**NV, "square": True},
}
FP4_MATMULS = (
    ("mxfp4", ("carrier_e4m3",), "fold8"),
    ("mxfp4", ("fp4",), "fold8"),
    ("mxfp4", ("fp4",), "exact32"),
    ("nvfp4", ("fp4",), "bf16"),
)
SPARSE_CASES = ((1, 3, 5), (130, 300, 141), (2100, 128, 128))  # m, n, k


def sparse_is_right(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> bool:
    """Whether all products of a sparse matrix are those of the CPU."""
    support = wlib.sparse_support(n, k, 0.05)
    draw = torch.Generator().manual_seed(k)
    sizes = ((m, k), (m, n), (support.count,))
    x, dy, values = (torch.randint(-1, 2, s, generator=draw).to(dtype) for s in sizes)
    results = []
    for where in ("cpu", device):
        places = [t.to(where) for t in (support.positions, support.offsets)]
        a, b, v = (t.to(where) for t in (x, dy, values))
        forward = torch.ops.wlib.tile_sparse_matmul(a, v, *places, n, k)
        transposed = torch.ops.wlib.tile_sparse_matmul(b, v, *places, n, k, True)
        sampled = torch.ops.wlib.tile_sampled_matmul(b, a, *places)
        results.append([t.cpu() for t in (forward, transposed, sampled)])
    return all(map(torch.equal, *results))


def grouped_is_right(problem: Problem, device: str) -> bool:
    """Three experts with the same weight: the first without tokens, the second with one."""
    stack = wlib.pack_experts([problem.weight] * 3).to(device)
    offsets = torch.tensor([0, 0, 1, len(problem.x)]).to(device)
    x, x_scale = problem.x.to(device), problem.x_scale.to(device)
    y = wlib.int4fp8_gemm_grouped(x, stack, x_scale, offsets)
    return torch.equal(y.cpu(), problem.expected())


def atoms_are_right(device: str) -> bool:
    """Both directions, an optimiser step, sums of lists, random bases and low rank."""
    draw = torch.Generator().manual_seed(1)
    grad, atoms, coef, first, second = (
        torch.randint(1, 4, shape, generator=draw).float()
        for shape in ((9, 3, 701), (5, 3, 701), (9, 5), (5, 3, 701), (5, 3, 701))
    )

    def run(device: str) -> list[torch.Tensor]:
        g, a, c, m, v = (t.to(device, copy=True) for t in (grad, atoms, coef, first, second))
        results = [wlib.atoms_reconstruct(a, c), *wlib.combine([[g, a], [g, a]], c[:2, :2].clone())]
        flat = [t for one in results for t in (one if isinstance(one, list) else [one])]
        flat += torch.ops.wlib.atoms_reconstruct_backward(g, a, c)
        flat += [wlib.atoms_step(g, a, c, m, v, lr=0.1, betas=(0.5, 0.5)), a, m, v]
        flat.append(torch.ops.wlib.prng_project(g, 6, 1, "sign", 0))
        flat.append(wlib.prng_expand(c[0].clone(), (701,), 1))
        factors = [g[:, 0, :27], g.view(27, 701)]  # both kernels, by the type of the result
        for dtype in (torch.float32, torch.bfloat16):
            flat += torch.ops.wlib.rebuild([], factors, [0], [1.0], out_dtype=dtype)
        return [t.cpu() for t in flat]

    return all(map(torch.equal, run(device), run("cpu")))


def linear_is_right(m: int, s: int, n: int, k: int, device: str) -> bool:
    """Over shared atoms with coefficients per token, tails of tokens, rows and columns."""
    draw = torch.Generator().manual_seed(m)
    sizes = ((m, k), (s, n, k), (m, s), (n,), (n, k))
    operands = [torch.randint(-1, 2, size, generator=draw).bfloat16() for size in sizes]
    operands[2] = operands[2].float() * (torch.rand(m, s, generator=draw) < 4 / s)
    results = []
    for where in (device, "cpu"):
        x, atoms, *rest = (t.to(where) for t in operands)
        codes = atoms.to(torch.float8_e4m3fn)
        kinds: list[Any] = [atoms, codes]
        if k % 32 == 0:
            kinds.append(wlib.PackedInt4Experts.quantize(atoms, 32))
        results.append([wlib.atoms_linear(x, kind, *rest).cpu() for kind in kinds])
    return all(map(torch.equal, *results))


def fp4_is_right(arguments: dict[str, Any], device: str) -> bool:
    """Whether both sides of a matrix, and one requantised, are those of the CPU: sums are exact."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randint(-63, 64, (160, 288), generator=draw).bfloat16()
    codes, scales = torch.ops.wlib.fp4_quantize(x)[:2]
    results = []
    for where in ("cpu", device):
        given = {k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        out = torch.ops.wlib.fp4_quantize(x.to(where), axis="both", **given)
        out += torch.ops.wlib.fp4_requantize_t(codes.to(where), scales.to(where), **given)
        out.append(torch.ops.wlib.hadamard(x.to(where), 32))
        out.append(torch.ops.wlib.fp4_signs(torch.tensor([3, 4]).to(where), 128))
        results.append([t.cpu().flatten().view(torch.uint8) for t in out])
    return all(map(torch.equal, *results))


def attention_is_right(dim: int, splits: int, half: bool, device: str) -> bool:
    """Equal scores: means of the values, over blocks of the cache and, in FP32, new keys."""
    draw = torch.Generator().manual_seed(dim)
    values = torch.randint(-7, 8, (192, 1, dim), generator=draw).float()
    values[:, :, 0] = 7
    kv, pages = wlib.quantize_kv_int4(values, values, torch.tensor([0, 192], dtype=torch.int32))
    q = torch.zeros(64, 3, dim).to(torch.float8_e4m3fn)
    new = torch.randint(-7, 8, (64, 1, dim), generator=draw).to(torch.float8_e4m3fn)

    def run(device: str) -> torch.Tensor:
        cache = wlib.Int4KVCache(*(t.to(device) for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)))
        one = torch.ones(64, 1, device=device)
        cached = 128 if half else 192  # a power of two of keys in all
        out = wlib.attention_prefill(
            q.to(device),
            cache,
            q_scale=torch.ones(64, 3, device=device),
            cu_seqlens_q=torch.tensor([0, 64], dtype=torch.int32, device=device),
            max_seqlen_q=64,
            seqused_k=torch.tensor([cached], dtype=torch.int32, device=device),
            page_table=pages.to(device),
            k_new=None if half else new.to(device),
            v_new=None if half else new.to(device),
            k_new_scale=None if half else one,
            v_new_scale=None if half else one,
            allow_fp16_scores=half,
            causal=False,
            num_splits=splits,
            out_dtype=torch.float32,
            return_lse=False,
        )
        assert isinstance(out, torch.Tensor)
        return out.cpu()

    error = (run(device) - run("cpu")).abs().max()
    return float(error) <= (0 if splits == 1 else 1e-5)


def rows_are_right(dim: int, half: bool, device: str) -> bool:
    """Zeros for queries: the mean of values that are integers, by rows that end with the memory."""
    whole = torch.full((8, 2, 16, dim + 8), 255, dtype=torch.uint8)
    kv = wlib.VllmInt4Cache.from_vllm(whole)
    draw = torch.Generator().manual_seed(dim)
    for codes, scales in ((kv.k, kv.k_scale), (kv.v, kv.v_scale)):
        codes[:] = torch.randint(0, 256, codes.shape, generator=draw, dtype=torch.uint8)
        scales[:] = (torch.ones(()).view(torch.int32) | 7).view(torch.float32)

    def run(device: str) -> torch.Tensor:
        out = wlib.attention_prefill(
            torch.zeros(70, 2, dim, device=device).to(torch.float8_e4m3fn),
            wlib.VllmInt4Cache.from_vllm(whole.to(device)),
            q_scale=torch.ones(70, 2, device=device),
            cu_seqlens_q=torch.tensor([0, 70], dtype=torch.int32, device=device),
            max_seqlen_q=70,
            seqused_k=torch.tensor([128], dtype=torch.int32, device=device),
            page_table=torch.arange(8, dtype=torch.int32, device=device)[None],
            allow_fp16_scores=half,
            causal=False,
            num_splits=1,
            out_dtype=torch.float32,
            return_lse=False,
        )
        assert isinstance(out, torch.Tensor)
        return out.cpu()

    return torch.equal(run(device), run("cpu"))


def cache_is_right(dim: int, device: str) -> bool:
    """Tokens written in two calls, some of them skipped, and queries: the CPU's bits."""
    draw = torch.Generator().manual_seed(dim)
    q, k, v = (
        torch.randn(90, heads + 1, dim, generator=draw).bfloat16()[:, 1:] for heads in (6, 3, 3)
    )
    mean, factor = torch.randn(2, 3, dim, generator=draw)
    factor = factor.exp()
    angle = torch.rand(90, dim // 2, generator=draw)
    slots = torch.randperm(128, generator=draw)[:90]
    slots[::5] = -1

    def run(device: str) -> list[torch.Tensor]:
        kv = wlib.Int4KVCache.allocate(2, 3, dim, device)
        smoothing = {"k_mean": mean.to(device), "k_smooth": factor.to(device)}
        for part in (slice(0, 1), slice(1, 90)):
            kv.append(k.to(device)[part], v.to(device)[part], slots.to(device)[part], **smoothing)
            smoothing = {}
        angles = angle.cos().to(device), angle.sin().to(device)
        codes, scale = wlib.quantize_q_fp8(q.to(device), kv.k_smooth, *angles)
        results = (kv.k, kv.v, kv.k_scale, kv.v_scale, codes.view(torch.uint8), scale)
        return [t.cpu() for t in results]

    return all(map(torch.equal, run(device), run("cpu")))


def fp4_matmul_is_right(format: str, emit: tuple[str, ...], mode: str, device: str) -> bool:
    """Whole numbers and odd sizes, all tails."""
    draw = torch.Generator().manual_seed(2)
    values = (torch.randint(-2, 3, (rows, 416), generator=draw).float() for rows in (150, 270))
    a, b = (wlib.fp4_quantize(v, format, emit=emit) for v in values)

    def run(device: str) -> torch.Tensor:
        sides = []
        for q in (a, b):
            fields = {f.name: getattr(q, f.name) for f in dataclasses.fields(q)}
            moved = {
                k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in fields.items()
            }
            sides.append(wlib.FP4Tensor(**moved))
        return wlib.fp4_matmul(sides[0], sides[1], 0.5, torch.float32, mode).cpu()

    # nvfp4's scales are no powers of two: sums round.
    error = (run(device) - run("cpu")).abs().max()
    return float(error) <= (1e-3 if format == "nvfp4" else 0)


def int4fp8_is_right(case: tuple[int, int, int, int, bool], device: str) -> bool:
    """The GEMM of one weight and of experts, and the quantisers of activations."""
    m, n, k, group_size, zero_point = case
    problem = exact_problem(m, n, k, group_size, zero_point=zero_point)
    packed = problem.weight.pack().to(device)
    y = wlib.int4fp8_gemm(problem.x.to(device), packed, problem.x_scale.to(device))
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(k))
    codes, _ = wlib.fp8_quantize(x.to(device))
    expected_codes, _ = wlib.fp8_quantize(x)
    wlib.rms_norm_fp8_quantize(x.to(device), torch.ones(k, device=device), sums_group=k)
    wlib.silu_mul_fp8_quantize(x.to(device))
    return (
        torch.equal(y.cpu(), problem.expected())
        and torch.equal(codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8))
        and grouped_is_right(problem, device)
    )


def checks() -> Iterator[tuple[str, Callable[[str], bool]]]:
    """What is run, and whether its result on a device is right."""
    for case in CASES:
        m, n, k, group_size, _ = case
        yield f"int4fp8 M={m} N={n} K={k} G={group_size}", partial(int4fp8_is_right, case)
    for m, n, k in SPARSE_CASES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"sparse M={m} N={n} K={k} {dtype}"
            yield name, partial(sparse_is_right, m, n, k, dtype)
    for m, s, n, k in LINEAR_CASES:
        yield f"linear M={m} S={s} N={n} K={k}", partial(linear_is_right, m, s, n, k)
    for name, arguments in FP4_CASES.items():
        yield f"fp4 {name}", partial(fp4_is_right, arguments)
    for format, emit, mode in FP4_MATMULS:
        title = f"fp4 matmul {format} {emit[0]} {mode}"
        yield title, partial(fp4_matmul_is_right, format, emit, mode)
    for dim, splits, half in (
        *((64, 1, False), (128, 1, False), (256, 1, False), (128, 2, False)),
        *((64, 1, True), (256, 1, True)),
    ):
        title = f"attention D={dim} splits={splits} half={half}"
        yield title, partial(attention_is_right, dim, splits, half)
    for dim, half in ((64, False), (128, True), (256, False)):
        yield f"attention over rows D={dim} half={half}", partial(rows_are_right, dim, half)
    for dim in (64, 128, 256):
        yield f"cache D={dim}", partial(cache_is_right, dim)
    yield "atoms", atoms_are_right


def main(device: str) -> int:
    """Run every check on `device`; return 1 if a result is wrong."""
    wrong = 0
    for title, is_right in checks():
        right = is_right(device)
        wrong += not right
        print(f"{title}: {'right' if right else 'WRONG'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
