"""Every op, many times over: bits, threads, forks, leaks, memory around operands, batches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_large
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import wlib
from op_calls import (
    VIEWS,
    Sample,
    bits,
    bits_far_apart,
    bits_of,
    digest,
    matrices,
    named_arguments,
    placed,
    tensors,
    views,
)
from op_samples import samples
from op_samples.int4fp8 import packed
from source_tree import ROOT

REPEATS = 20
SAMPLES = samples()
NAMES = [f"{i}-{sample[0]}" for i, sample in enumerate(SAMPLES)]


def process(task: str, **environment: str) -> Any:
    """What a task of reliability_processes.py finds in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "reliability_processes.py"), task],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """The digest of every sample's results."""
    return [digest(sample) for sample in samples()]


def differing(found: list[str] | None, expected: list[str]) -> list[str]:
    """The samples whose results are not the expected ones."""
    assert found is not None, "the process died or hung"
    return [n for n, a, b in zip(NAMES, found, expected, strict=True) if a != b]


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_repeats_give_the_same_bits(sample: Sample) -> None:
    first = bits(sample)
    assert all(bits(sample) == first for _ in range(REPEATS - 1))


@pytest.fixture(scope="module")
def programs() -> Any:
    """In a process whose malloc hands out memory full of 0x7F: NaN in E4M3, huge elsewhere.

    Whoever reads what was never written gets other results.
    """
    return process("programs", MALLOC_PERTURB_="128")


def test_eight_threads(programs: Any, expected: list[str]) -> None:
    """The first calls of each op included, which all threads make at the same time."""
    found = programs["threads"]
    assert [differing(each, expected) for each in found] == [[]] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_forked_children(programs: Any, expected: list[str]) -> None:
    """Of a process that has run nothing; with one thread, also of one whose threads have run."""
    assert differing(programs["before"], expected) == []
    assert differing(programs["after"], expected) == []


# --- leaks --------------------------------------------------------------------------------------

# The smallest block of malloc has 32 bytes: a thousand leaked ones are more than this.
SMALLEST_LEAK = 16_000


@pytest.fixture(scope="module")
def leaks() -> Any:
    name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    if name != "glibc" or tuple(map(int, version.split("."))) < (2, 33):
        pytest.skip("needs mallinfo2 of glibc 2.33")
    return process("leaks")


def test_a_thousand_calls_leak_nothing(leaks: Any) -> None:
    assert len(leaks["grown"]) >= 30
    assert {op: size for op, size in leaks["grown"].items() if size > SMALLEST_LEAK} == {}
    assert leaks["resident"] < 2**20
    assert leaks["a leak"] > SMALLEST_LEAK, "a leak would not be seen"


# --- memory around operands ---------------------------------------------------------------------


def surrounded(
    sample: Sample, poison: int, apart: int = 0, only: tuple[str, int] | None = None
) -> bool:
    """Whether a call gives the same bits with its tensors amid bytes `poison`.

    `only` moves one tensor alone: the name of an argument, and which of the argument's tensors.
    """
    intact: list[Callable[[], bool]] = []

    def move(key: str, value: Any) -> Any:
        leaves, spec = pytree.tree_flatten(value)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and only in (None, (key, i)):
                leaves[i] = placed(leaf, intact, poison, apart)
        return pytree.tree_unflatten(leaves, spec)

    given = {key: move(key, value) for key, value in named_arguments(sample).items()}
    found = bits_of(sample[0], given)
    assert intact
    assert all(untouched() for untouched in intact), "a byte outside was written"
    return found == bits(sample)


def test_guard_bands_tell() -> None:
    """Of a read beyond a row and of a write there."""
    intact: list[Callable[[], bool]] = []
    beyond = placed(torch.ones(3, 8), intact, 0xFF, apart=8).as_strided((3, 9), (16, 1))
    assert beyond[:, 8].isnan().all()
    assert intact[0]()
    beyond[1, 8] = 0
    assert not intact[0]()


@pytest.mark.parametrize("poison", [0xFF, 0x7F], ids=hex)
@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_nothing_around_operands_is_read_or_written(sample: Sample, poison: int) -> None:
    """Bytes 0xFF are NaN in every format; 0x7F is NaN in E4M3 and huge in others."""
    assert surrounded(sample, poison)


def refusal(sample: Sample, key: str, i: int) -> str | None:
    """What an op says to 64 poisoned elements between the rows of a matrix; None if it takes it."""
    try:
        assert surrounded(sample, 0xFF, apart=64, only=(key, i)), (sample[0], key, i)
    except ValueError as error:
        return str(error)
    return None


def test_rows_that_lie_apart_are_seen_through_or_refused() -> None:
    taken: set[str] = set()
    for sample in SAMPLES:
        for key, i in matrices(sample):
            message = refusal(sample, key, i)
            assert message is None or re.match(r"wlib::.*expected .*, got .*\(argument '", message)
            if message is None:
                taken.add(f"{sample[0].split('.')[0]} {key}")
    assert taken >= VIEWS, VIEWS - taken


@pytest.mark.skipif(sys.platform != "linux", reason="reserves memory as Linux does")
@pytest.mark.parametrize(("sample", "key", "i"), views(), ids=sorted(VIEWS))
def test_rows_beyond_2_to_31_elements(sample: Sample, key: str, i: int) -> None:
    """Where the offset of the last row does not fit into 32 bits."""
    assert bits_far_apart(sample, key, i) == bits(sample)


@pytest.mark.parametrize("name", test_large.CASES)
def test_what_a_gpu_checks_beyond_2_to_31_elements_holds_here(name: str) -> None:
    check, _, sizes = test_large.CASES[name]
    check(*sizes, 100, "cpu")


# --- batches ------------------------------------------------------------------------------------

FEW, MANY = (1, 2, 7, 15), (16, 17, 40, 64, 100)  # the CPU's two routes of int4fp8_gemm


def rows_of(results: Any, m: int) -> list[Tensor]:
    return [t[:m] for t in tensors(results)]


def same(results: Any, others: Any, m: int) -> bool:
    """Whether the first m rows of all results have the same bits."""
    pairs = zip(rows_of(results, m), rows_of(others, m), strict=True)
    return all(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
               for a, b in pairs)  # fmt: skip


def quantisers() -> dict[str, Callable[[Tensor], Any]]:
    """Those that are documented to see a row alone; `global_scale` is that of a whole tensor."""
    ops, weight, scale = torch.ops.wlib, torch.rand(256), torch.tensor(0.01)
    random: dict[str, Any] = {"rounding": "stochastic", "seed": torch.tensor(3)}
    nv = {"format": "nvfp4", "scale_rule": "amax", "global_scale": scale}
    return {
        "fp8_quantize": ops.fp8_quantize,
        "rms_norm": lambda x: ops.rms_norm_fp8_quantize(x, weight, residual=x),
        "silu_mul": ops.silu_mul_fp8_quantize,
        "queries": lambda x: ops.quantize_q_fp8(x.view(-1, 4, 64)),
        "mxfp4": lambda x: ops.fp4_quantize(x, hadamard=32)[:2],
        "mxfp4 stochastic": lambda x: ops.fp4_quantize(x, **random)[:2],
        "nvfp4": lambda x: ops.fp4_quantize(x, **nv)[:2],
        "hadamard": lambda x: ops.hadamard(x, 64),
    }


@pytest.mark.parametrize("name", quantisers())
def test_a_quantiser_sees_a_row_alone(name: str) -> None:
    torch.manual_seed(0)
    run, x = quantisers()[name], torch.randn(100, 256)
    whole = run(x)
    for m in (*FEW, *MANY):
        others = torch.cat((x[:m], torch.full((3, 256), 1e4)))
        assert same(run(x[:m]), whole, m), m
        assert same(run(others), whole, m), m


@pytest.mark.parametrize("route", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize(("n", "k", "group_size"), [(70, 256, 128), (40, 96, 32), (9, 160, 160)])
def test_a_token_of_the_matmul_does_not_see_its_batch(
    route: tuple[int, ...], n: int, k: int, group_size: int
) -> None:
    torch.manual_seed(0)
    weight = packed(n, k, group_size, zero_point=True)
    xq, xs = wlib.fp8_quantize(torch.randn(route[-1], k))
    whole = wlib.int4fp8_gemm(xq, weight, xs, out_dtype=torch.float32)
    for m in route:
        y = wlib.int4fp8_gemm(xq[:m], weight, xs[:m], out_dtype=torch.float32)
        assert same(y, whole, m), m


# --- graphs without Python ----------------------------------------------------------------------


class Layers(torch.nn.Module):
    """INT4 matmul, a layer over shared atoms and a rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = packed(64, 128, 128)
        self.register_buffer("data", self.weight.data)
        self.register_buffer("atoms", torch.randn(3, 16, 64))
        self.register_buffer("coef", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        ops, shape = torch.ops.wlib, {"n": self.weight.n, "group_size": self.weight.group_size}
        xq, xs = ops.fp8_quantize(x)
        y = ops.int4fp8_gemm(xq, self.data, xs, **shape, out_dtype=torch.float32)
        return ops.hadamard(ops.atoms_linear(torch.relu(y), self.atoms, self.coef), 16)


@pytest.mark.slow
def test_a_package_of_aot_inductor(tmp_path: Path) -> None:
    """torch compiles its wrapper with g++, which takes up to 20 seconds."""
    torch.manual_seed(0)
    model, rows = Layers(), torch.export.Dim("rows")
    exported = torch.export.export(model, (torch.randn(5, 128),), dynamic_shapes=({0: rows},))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{tmp_path}/model.pt2")
    run = torch._inductor.aoti_load_package(path)
    for m in (2, 7, 40):
        x = torch.randn(m, 128)
        assert torch.equal(run(x), model(x))
