"""Small problems for compute-sanitizer: a few launches per case and nothing of torch in between.

Usage: python sanitizer_cases.py [cuda | cpu]
"""

import dataclasses
import sys

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
SPARSE_CASES = ((1, 3, 5), (130, 300, 141), (2100, 128, 128))  # m, n, k


def sparse_is_right(m: int, n: int, k: int, device: str) -> bool:
    """Whether all products of a sparse matrix are those of the CPU."""
    support = wlib.sparse_support(n, k, 0.05)
    draw = torch.Generator().manual_seed(k)
    sizes = ((m, k), (m, n), (support.count,))
    x, dy, values = (torch.randint(-1, 2, s, generator=draw).float() for s in sizes)
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
    """Both directions, an optimiser step, sums of lists and random bases, with odd sizes."""
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
        return [t.cpu() for t in flat]

    return all(map(torch.equal, run(device), run("cpu")))


def attention_is_right(dim: int, splits: int, device: str) -> bool:
    """Equal scores: means of the values, over blocks of the cache and new keys."""
    draw = torch.Generator().manual_seed(dim)
    values = torch.randint(-7, 8, (192, 1, dim), generator=draw).float()
    values[:, :, 0] = 7
    kv, pages = wlib.quantize_kv_int4(values, values, torch.tensor([0, 192], dtype=torch.int32))
    q = torch.zeros(64, 3, dim).to(torch.float8_e4m3fn)
    new = torch.randint(-7, 8, (64, 1, dim), generator=draw).to(torch.float8_e4m3fn)

    def run(device: str) -> torch.Tensor:
        cache = wlib.Int4KVCache(*(t.to(device) for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)))
        one = torch.ones(64, 1, device=device)
        out = wlib.attention_prefill(
            q.to(device),
            cache,
            q_scale=torch.ones(64, 3, device=device),
            cu_seqlens_q=torch.tensor([0, 64], dtype=torch.int32, device=device),
            max_seqlen_q=64,
            seqused_k=torch.tensor([192], dtype=torch.int32, device=device),
            page_table=pages.to(device),
            k_new=new.to(device),
            v_new=new.to(device),
            k_new_scale=one,
            v_new_scale=one,
            causal=False,
            num_splits=splits,
            out_dtype=torch.float32,
            return_lse=False,
        )
        assert isinstance(out, torch.Tensor)
        return out.cpu()

    error = (run(device) - run("cpu")).abs().max()
    return float(error) <= (0 if splits == 1 else 1e-5)


def fp4_is_right(format: str, emit: tuple[str, ...], mode: str, device: str) -> bool:
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


FP4_CASES = (
    ("mxfp4", ("carrier_e4m3",), "fold8"),
    ("mxfp4", ("fp4",), "fold8"),
    ("mxfp4", ("fp4",), "exact32"),
    ("nvfp4", ("fp4",), "bf16"),
)


def main(device: str) -> int:
    """Run every case on `device`; return 1 if a result is wrong."""
    wrong = 0
    for m, n, k, group_size, zero_point in CASES:
        problem = exact_problem(m, n, k, group_size, zero_point=zero_point)
        packed = problem.weight.pack().to(device)
        y = wlib.int4fp8_gemm(problem.x.to(device), packed, problem.x_scale.to(device))
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(k))
        codes, _ = wlib.fp8_quantize(x.to(device))
        expected_codes, _ = wlib.fp8_quantize(x)
        wlib.rms_norm_fp8_quantize(x.to(device), torch.ones(k, device=device), sums_group=k)
        wlib.silu_mul_fp8_quantize(x.to(device))
        right = torch.equal(y.cpu(), problem.expected()) and torch.equal(
            codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8)
        )
        right = right and grouped_is_right(problem, device)
        wrong += not right
        print(f"M={m} N={n} K={k} G={group_size}: {'right' if right else 'WRONG'}", flush=True)
    for m, n, k in SPARSE_CASES:
        right = sparse_is_right(m, n, k, device)
        wrong += not right
        print(f"sparse M={m} N={n} K={k}: {'right' if right else 'WRONG'}", flush=True)
    for dim, splits in ((64, 1), (128, 1), (256, 1), (128, 2)):
        right = attention_is_right(dim, splits, device)
        wrong += not right
        print(f"attention D={dim} splits={splits}: {'right' if right else 'WRONG'}", flush=True)
    for format, emit, mode in FP4_CASES:
        right = fp4_is_right(format, emit, mode, device)
        wrong += not right
        print(f"fp4 {format} {emit[0]} {mode}: {'right' if right else 'WRONG'}", flush=True)
    right = atoms_are_right(device)
    wrong += not right
    print(f"atoms: {'right' if right else 'WRONG'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
