"""Exact checks of the installed library: problems whose true result is representable.

Activations are small integers and scales powers of two, so that every partial sum is exact on any
route. Each result must then equal the float64 reference bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .atoms import atoms_reconstruct
from .atoms_linear import atoms_linear
from .atoms_optim import atoms_step
from .experts import int4fp8_gemm_grouped, pack_experts
from .fp4 import fp4_quantize
from .info import info
from .int4fp8 import int4fp8_gemm
from .prefill import Int4KVCache, attention_prefill, quantize_kv_int4
from .quantizer import fp8_quantize
from .reference import atoms as reference_atoms
from .reference import exact
from .reference import fp4 as reference_fp4
from .reference import int4fp8 as reference
from .reference import rebuild as rebuilt
from .reference import sparse_lowrank as reference_sparse
from .sparse_lowrank import sparse_support

_SIZES_M = (1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130)
_SIZES_N = (1, 63, 64, 65, 130, 384)
_K_AND_GROUP = ((128, 128), (640, 128), (256, 64), (96, 32), (96, 96), (512, 256))
_REPORT_SECONDS = 10
_OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m wlib selftest` to `parser`."""
    parser.add_argument("--seconds", type=float, default=60, help="per device; default 60")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Check every device; returns 0 if all of it is exact, else 1."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return max(_check_device(device, args.seconds, args.seed) for device in devices)


def _check_device(device: str, seconds: float, seed: int) -> int:
    checks: dict[str, Callable[[torch.Generator, str], str]] = {
        "int4fp8_gemm": _check_gemm,
        "int4fp8_gemm_grouped": _check_grouped,
        "fp8_quantize": _check_quantize,
        "fp4_quantize": _check_fp4,
        "rebuild": _check_rebuild,
        "atoms_reconstruct": _check_atoms,
        "atoms_linear": _check_linear,
        "tile_sparse_matmul": _check_sparse,
        "atoms_step_": _check_atoms_step,
        "attention_prefill": _check_attention,
    }
    architecture = "cpu" if device == "cpu" else "sm_"
    rows = info().dispatch
    for op in [op for op in checks if architecture not in "".join(rows[op])]:
        print(f"{device}: no kernel of {op} to check")
        del checks[op]
    done = dict.fromkeys(checks, 0)
    next_report = time.monotonic() + _REPORT_SECONDS
    for number in _until(time.monotonic() + seconds):
        for name, check in checks.items():
            generator = torch.Generator().manual_seed(seed + number)
            try:
                fault = check(generator, device)
            except NotImplementedError as error:
                print(f"{device}: {error}")
                return 1
            if fault:
                print(f"{device}: {name} FAILED at --seed {seed + number}: {fault}")
                return 1
            done[name] += 1
        if time.monotonic() > next_report:
            print(f"{device}: {number + 1} rounds exact", flush=True)
            next_report = time.monotonic() + _REPORT_SECONDS
    print(f"{device}: " + ", ".join(f"{count} x {name} exact" for name, count in done.items()))
    return 0


def _until(deadline: float) -> Iterator[int]:
    number = 0
    while number == 0 or time.monotonic() < deadline:
        yield number
        number += 1


def _draw(values: tuple[int, ...], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _check_gemm(generator: torch.Generator, device: str) -> str:
    """Empty if one random exact problem comes out right, else what went wrong."""
    m, n = _draw(_SIZES_M, generator), _draw(_SIZES_N, generator)
    index = int(torch.randint(len(_K_AND_GROUP), (), generator=generator))
    k, group_size = _K_AND_GROUP[index]
    zero_point = bool(torch.randint(2, (), generator=generator))
    problem = exact.problem(m, n, k, group_size, zero_point=zero_point, generator=generator)
    out_dtype = _OUT_DTYPES[int(torch.randint(3, (), generator=generator))]
    expected = reference.int4fp8_gemm(problem.x, problem.weight, problem.x_scale, problem.bias).y
    y = int4fp8_gemm(
        problem.x.to(device),
        problem.weight.pack().to(device),
        problem.x_scale.to(device),
        bias=problem.bias.to(device),
        out_dtype=out_dtype,
    ).cpu()
    return _difference(
        y, expected.to(out_dtype), f"m={m}, n={n}, k={k}, group_size={group_size}, {out_dtype}"
    )


def _check_grouped(generator: torch.Generator, device: str) -> str:
    """A few experts, empty ones among them."""
    n, index = _draw(_SIZES_N, generator), _draw(tuple(range(len(_K_AND_GROUP))), generator)
    k, group_size = _K_AND_GROUP[index]
    options = {"zero_point": bool(torch.randint(2, (), generator=generator))}
    counts = [_draw((0, *_SIZES_M), generator) for _ in range(_draw((1, 2, 5), generator))]
    problems = [exact.problem(m, n, k, group_size, **options, generator=generator) for m in counts]
    x = torch.cat([one.x for one in problems])
    x_scale = torch.cat([one.x_scale for one in problems])
    weights, bias = [one.weight for one in problems], torch.stack([one.bias for one in problems])
    expected = reference.int4fp8_gemm_grouped(x, weights, x_scale, counts, bias).y
    out_dtype = _draw_dtype(generator)
    y = int4fp8_gemm_grouped(
        x.to(device),
        pack_experts(weights).to(device),
        x_scale.to(device),
        torch.tensor([0, *counts]).cumsum(0).to(device),
        bias.to(device),
        out_dtype,
    ).cpu()
    where = f"tokens={counts}, n={n}, k={k}, group_size={group_size}, {out_dtype}"
    return _difference(y, expected.to(out_dtype), where)


def _check_quantize(generator: torch.Generator, device: str) -> str:
    m, k = _draw(_SIZES_M, generator), _draw((1, 7, 8, 100, 384, 4096), generator)
    x = torch.randn(m, k, generator=generator).to(_draw_dtype(generator))
    scale = x.float().abs().amax(dim=1) / 448
    codes = (x.float() / scale[:, None]).to(torch.float8_e4m3fn)
    got_codes, got_scale = fp8_quantize(x.to(device))
    where = f"m={m}, k={k}, {x.dtype}"
    return _difference(got_scale.cpu(), scale, f"scale, {where}") or _difference(
        got_codes.cpu().view(torch.uint8), codes.view(torch.uint8), f"codes, {where}"
    )


def _check_fp4(generator: torch.Generator, device: str) -> str:
    """Rotations that divide by 4 or 8: their sums of integers are exact in float32."""
    rows, columns = 64 * _draw((1, 2, 5), generator), 64 * _draw((1, 3, 16), generator)
    size, rule = _draw((0, 16, 64), generator), ("even", "floor")[_draw((0, 1), generator)]
    x = torch.randint(-127, 128, (rows, columns), generator=generator).to(_draw_dtype(generator))
    pair = fp4_quantize(x.to(device), hadamard=size, scale_rule=rule, axis="both")
    for name, got, values in zip(("rows", "columns"), pair, (x, x.T), strict=True):
        true = values.double()
        true = reference_fp4.rotate(true, size) if size else true
        expected = reference_fp4.quantize_mx(true, rule).values().float()
        where = f"{name} of [{rows}, {columns}], hadamard={size}, {rule}, {x.dtype}"
        if fault := _difference(got.dequantize().cpu(), expected, where):
            return fault
    return ""


def _check_rebuild(generator: torch.Generator, device: str) -> str:
    """Layers of every form in one call: integers, whose sums are exact in float32."""
    n, k, r = 12 * _draw((1, 2, 7, 11, 22), generator), 12 * _draw((1, 5, 16, 25), generator), 6

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    a1, b1, a2, b2 = integers(n, r), integers(r, k), integers(n, 2), integers(2, k)
    left, right, blocks = integers(n // 3, k // 4), integers(3, 4), integers(n // r, r, r)
    w0, dtype = integers(n, k), _draw_dtype(generator)
    operands = [a1, b1, a1, b1, a2, b2, left, right, blocks]
    layers = ([w0.to(device)] * 4, [x.to(device) for x in operands], [0, 1, 2, 3], [0.5] * 4)
    expected = (
        rebuilt.low_rank(w0, a1, b1, 0.5),
        rebuilt.hadamard(w0, a1, b1, a2, b2, 0.5),
        rebuilt.kron(w0, left, right, 0.5),
        rebuilt.block_affine(w0, blocks, 0.5),
    )
    got = torch.ops.wlib.rebuild(*layers, out_dtype=dtype)
    faults = (
        _difference(y.cpu(), exact.value.to(dtype), f"form={form}, n={n}, k={k}, {dtype}")
        for form, (y, exact) in enumerate(zip(got, expected, strict=True))
    )
    return next(filter(None, faults), "")


def _check_atoms(generator: torch.Generator, device: str) -> str:
    """Small integers: both directions are exact in float32."""
    layers, count = _draw((1, 2, 3, 8, 32), generator), _draw((1, 3, 4, 11), generator)
    shape = (count, _draw((1, 3, 64), generator), _draw((1, 8, 255, 257, 1024), generator))
    per_row = bool(torch.randint(2, (), generator=generator))
    dtype = _draw_dtype(generator)

    def draw(*size: int) -> Tensor:
        return torch.randint(-4, 5, size, generator=generator).float()

    atoms, grad = draw(*shape).to(dtype), draw(layers, *shape[1:]).to(dtype)
    coef = draw(layers, count, shape[1]) if per_row else draw(layers, count)
    where = f"{layers} layers, atoms {list(shape)}, coef {list(coef.shape)}, {dtype}"
    inputs = atoms.to(device), coef.to(device)
    w = atoms_reconstruct(*inputs, scale=0.5)
    grads = torch.ops.wlib.atoms_reconstruct_backward(grad.to(device), *inputs, scale=0.5)
    true = (
        reference_atoms.reconstruct(atoms, coef, scale=0.5),
        *reference_atoms.reconstruct_backward(grad, atoms, coef, 0.5),
    )
    for name, got, exact_one in zip(
        ("w", "grad_atoms", "grad_coef"), (w, *grads), true, strict=True
    ):
        fault = _difference(got.cpu(), exact_one.value.to(got.dtype), f"{name}, {where}")
        if fault:
            return fault
    return ""


def _check_linear(generator: torch.Generator, device: str) -> str:
    """Small integers, few coefficients that are not zero: every sum is exact."""
    m, n, s = (_draw(sizes, generator) for sizes in (_SIZES_M, _SIZES_N, (1, 3, 8, 130)))
    k, own = _draw((8, 64, 200), generator), bool(torch.randint(2, (), generator=generator))
    dtype = (torch.bfloat16, torch.float16)[int(torch.randint(2, (), generator=generator))]

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randint(-1, 2, size, generator=generator).to(dtype)

    coef = draw(*((m, s) if own else (s,)), dtype=torch.float32)
    coef *= torch.rand(coef.shape, generator=generator) < 3 / s
    operands = draw(m, k), draw(s, n, k), coef, draw(n), draw(n, k)
    y = atoms_linear(*(t.to(device) for t in operands)).cpu()
    where = f"m={m}, s={s}, n={n}, k={k}, coef {list(coef.shape)}, {dtype}"
    return _difference(y, reference_atoms.linear(*operands).value.to(dtype), where)


def _check_sparse(generator: torch.Generator, device: str) -> str:
    """Small integers: both products and the sampled one are exact in float32."""
    m, n = _draw(_SIZES_M, generator), _draw(_SIZES_N, generator)
    k, density = _draw((1, 64, 128, 300), generator), 0.05 * _draw((0, 1, 8), generator)
    support = sparse_support(
        n, k, density, seed=int(torch.randint(1 << 30, (), generator=generator))
    )
    dtype = _draw_dtype(generator)

    def draw(*size: int) -> Tensor:
        return torch.randint(-2, 3, size, generator=generator).to(dtype)

    x, dy, values = draw(m, k), draw(m, n), draw(support.count)
    s = reference_sparse.sparse(values, support.indices(), n, k)
    true = (
        x.double() @ s.T + dy.double(),
        dy.double() @ s,
        support.gather(dy.double().T @ x.double()),
    )
    places = [t.to(device) for t in (support.positions, support.offsets)]
    left, right, v = x.to(device), dy.to(device), values.to(device)
    got = (
        torch.ops.wlib.tile_sparse_matmul(left, v, *places, n, k, False, right),
        torch.ops.wlib.tile_sparse_matmul(right, v, *places, n, k, True),
        torch.ops.wlib.tile_sampled_matmul(right, left, *places),
    )
    where = f"m={m}, n={n}, k={k}, {support.count} values, {dtype}"
    faults = (
        _difference(y.cpu(), exact_one.to(dtype), f"{name}, {where}")
        for name, y, exact_one in zip(("y", "dx", "dvalues"), got, true, strict=True)
    )
    return next(filter(None, faults), "")


def _check_atoms_step(generator: torch.Generator, device: str) -> str:
    """Lion with powers of two: atoms, moments and the gradient of coef are exact."""
    shape = (_draw((1, 3, 11), generator), 3, _draw((1, 255, 1024), generator))
    layers = _draw((1, 2, 9), generator)

    def draw(*size: int) -> Tensor:
        return torch.randint(-4, 5, size, generator=generator).float()

    atoms, moment, grad = draw(*shape), draw(*shape), draw(layers, *shape[1:])
    coef = draw(layers, shape[0])
    gradients = reference_atoms.reconstruct_backward(grad, atoms, coef)
    direction = 0.5 * moment + 0.5 * gradients[0].value
    expected = (
        0.5 * atoms - direction.sign(),
        0.25 * moment + 0.75 * gradients[0].value,
        gradients[1].value,
    )
    got, got_moment = (t.to(device, copy=True) for t in (atoms, moment))
    arguments = grad.to(device), got, coef.to(device), got_moment
    got_coef = atoms_step(*arguments, lr=1.0, betas=(0.5, 0.25), weight_decay=0.5)
    for name, result, true in zip(
        ("atoms", "moment", "grad_coef"), (got, got_moment, got_coef), expected, strict=True
    ):
        where = f"{name}, {layers} layers, atoms {list(shape)}"
        if fault := _difference(result.cpu(), true.float(), where):
            return fault
    return ""


def _check_attention(generator: torch.Generator, device: str) -> str:
    """Equal scores over a power of two of keys: the output is the mean of integers."""
    dim, keys = _draw((64, 128, 256), generator), _draw((1, 2, 64, 128, 512), generator)
    heads, queries = _draw((1, 3, 16), generator), _draw((1, 17, 130), generator)
    where = f"head_dim={dim}, keys={keys}, heads={heads}, queries={queries}"
    values = torch.randint(-7, 8, (keys, 1, dim), generator=generator).float()
    values[:, :, 0] = 7  # so that the scale is 1
    kv, pages = quantize_kv_int4(values, values, torch.tensor([0, keys], dtype=torch.int32))
    cache = Int4KVCache(*(t.to(device) for t in (kv.k, kv.v, kv.k_scale, kv.v_scale)))
    out = attention_prefill(
        torch.zeros(queries, heads, dim).to(torch.float8_e4m3fn).to(device),
        cache,
        q_scale=torch.ones(queries, heads, device=device),
        cu_seqlens_q=torch.tensor([0, queries], dtype=torch.int32, device=device),
        max_seqlen_q=queries,
        seqused_k=torch.tensor([keys], dtype=torch.int32, device=device),
        page_table=pages.to(device),
        causal=False,
        num_splits=1,
        out_dtype=torch.float32,
        return_lse=False,
    )
    assert isinstance(out, Tensor)
    return _difference(out.cpu(), values.mean(0).expand(queries, heads, dim), where)


def _draw_dtype(generator: torch.Generator) -> torch.dtype:
    return _OUT_DTYPES[int(torch.randint(3, (), generator=generator))]


def _difference(got: Tensor, expected: Tensor, where: str) -> str:
    wrong = (got != expected).nonzero()
    if len(wrong) == 0:
        return ""
    at = tuple(int(i) for i in wrong[0])
    first = f"first {at}: {got[at]} instead of {expected[at]}"
    return f"{len(wrong)} of {got.numel()} values differ, {first} ({where})"
