"""Writes docs/support_matrix.md: which kernel serves what, and how far it has been proven.

Rows come from the dispatch tables of the library, and from wlib_probe those of architectures that a
build has to ask for. A GPU kernel is `compiled`; `simulated` if each of its compiled configurations
also runs in the simulator; `measured` if bench/results has rows of it. Needs wlib_probe on the
path: `make docs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import wlib_probe

from machine_code import read_budget
from wlib.bench.rows import Row, read_rows
from wlib.info import FAMILIES, family_dispatch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support_matrix.md"
RESULTS = ROOT / "bench" / "results"
# The op that an arm of the benchmark times by itself.
MEASURED_OPS = {
    ("int4fp8", "wlib"): "int4fp8_gemm",
    ("int4fp8_grouped", "wlib"): "int4fp8_gemm_grouped",
    ("fp8_quantize", "wlib"): "fp8_quantize",
    ("fp8_quantize", "wlib+rms_norm"): "rms_norm_fp8_quantize",
    ("fp8_quantize", "wlib+silu_mul"): "silu_mul_fp8_quantize",
    ("fp4_quantize", "wlib"): "fp4_quantize",
    ("fp4_matmul", "wlib"): "fp4_matmul",
    ("atoms_reconstruct", "wlib"): "atoms_reconstruct",
    ("atoms_backward", "wlib"): "atoms_reconstruct_backward",
    ("atoms_step", "wlib"): "atoms_step_",
    ("atoms_linear", "wlib"): "atoms_linear",
    ("lora_merge", "wlib"): "rebuild",
    ("prng_expand", "wlib"): "prng_expand",
    ("prefill", "wlib"): "attention_prefill",
    ("kv_append", "wlib"): "append_kv_int4",
}
# Ops whose kernels a build for further architectures compiles for them, too.
PORTABLE = ("fp4_quantize", "fp4_requantize_t", "fp4_signs", "hadamard")
HEADER = """\
# Support matrix

Written by `make docs` from the library's dispatch tables, the instances in the simulator and the
rows in `bench/results`.

- `tested`: CPU code, run by the tests.
- `compiled`: the machine code is held to a budget, and nothing more. For sm_100a and sm_120a, which
  a build has to ask for: it compiles, and nothing more.
- `simulated`: every compiled configuration also runs in the simulator, in the tests.
- `measured`: ran in the benchmark on that GPU.

| op | architecture | for | kernel | state |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Entry:
    """One row of a dispatch table, e.g. `sm_90a, M <= 8: sm90_decode, tile of 8 tokens`."""

    family: str
    op: str
    architecture: str
    condition: str
    kernel: str

    @classmethod
    def parse(cls, family: str, op: str, line: str) -> Entry:
        head, _, kernel = line.partition(": ")
        architecture, _, condition = head.partition(", ")
        return cls(family, op, architecture, condition or "any M", kernel)

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether a problem of the benchmark meets the condition; rows are asked in order."""
        if match := re.fullmatch(r"M (<=?) (\d+)", self.condition):
            return sizes["m"] < int(match[2]) + (match[1] == "<=")
        if match := re.fullmatch(r"T <= (\d+) E", self.condition):
            return sizes["m"] * sizes["top_k"] <= int(match[1]) * sizes["experts"]
        if match := re.fullmatch(r"head_dim (\d+)", self.condition):
            return sizes["head_dim"] == int(match[1])
        return True


def opt_in(op: str, rows: Iterable[str]) -> list[str]:
    """Rows of kernels for architectures that a build has to ask for."""
    if op == "fp4_matmul":
        return [row.strip() for row in wlib_probe.fp4_block_scaled_rows()]
    if op not in PORTABLE:
        return []
    hopper = [row for row in rows if row.startswith("sm_90a")]
    return [row.replace("sm_90a", arch, 1) for arch in ("sm_100a", "sm_120a") for row in hopper]


def entries() -> list[Entry]:
    return [
        Entry.parse(family, op, row)
        for family in FAMILIES
        for op, rows in family_dispatch(family).items()
        for row in dict.fromkeys([*rows, *opt_in(op, rows)])
    ]


def compiled_kernels(entry: Entry) -> set[str]:
    """Names, as in the budget of the machine code, of what the row can launch."""
    tokens = re.search(r"(\d+) tokens", entry.kernel)
    found = set()
    for kernel in re.findall(r"sm90_(\w+)", entry.kernel):
        start = f"{entry.family}::{kernel}_kernel"
        if kernel == "decode" and tokens:
            start += f"<DecodeConfig<{tokens[1]}, "
        found |= {name for name in read_budget() if name.startswith(start)}
    return found


def _simulated_int4fp8() -> Iterator[str]:
    types = ("__half", "__nv_bfloat16", "float")
    rows = ("PlainRow", "RmsNormRow", "SiluMulRow")
    yield from (f"quantize_kernel<{row}<{t}>>" for row in rows for t in types)
    yield "group_sums_kernel"
    for tokens, consumers, stages, groups, zeros in wlib_probe.int4fp8_decode_instances():
        values = f"{tokens}, {groups}, {str(bool(zeros)).lower()}, {consumers}, {stages}"
        yield f"decode_kernel<DecodeConfig<{values}>>"
    for tokens, rows, stages, groups, zeros in wlib_probe.int4fp8_cooperative_instances():
        values = f"{tokens}, {rows}, {groups}, {str(bool(zeros)).lower()}, {stages}"
        yield f"cooperative_kernel<CooperativeConfig<{values}>>"


def _simulated_prefill() -> Iterator[str]:
    for dim, half, rows in wlib_probe.attention_instances():
        values = f"{dim}, {str(half).lower()}, {str(rows).lower()}"
        yield f"attention_kernel<AttentionConfig<{values}>>"
    yield "combine_kernel"
    types = ("__half", "__nv_bfloat16", "float")
    for kernel in ("append", "quantize_queries"):
        yield from (f"{kernel}_kernel<{t}, {dim}>" for t in types for dim in (64, 128, 256))


def _simulated_atoms() -> Iterator[str]:
    flags = ("false", "true")
    yield from (f"reconstruct_kernel<{resident}>" for resident in flags)
    yield from (f"backward_kernel<{resident}, {update}>" for resident in flags for update in flags)
    yield "finish_kernel"
    tables = ("96, 8", "3072, 384")
    yield from (f"combine_kernel<{r}, CombineTable<{table}>>" for r in flags for table in tables)
    yield from (
        f"linear_kernel<LinearConfig<(FloatType){i}, (LinearAtoms){a}>>"
        for i in (1, 2)
        for a in range(3)
    )
    yield "linear_sum_kernel"


def _simulated_rebuild() -> Iterator[str]:
    products = ("FusedProducts", "TensorProducts")
    yield from (f"rebuild_kernel<{p}, {capacity}>" for p in products for capacity in (8, 272))
    yield from (
        f"{name}_kernel<(Distribution){i}>" for name in ("expand", "project") for i in range(3)
    )


def _simulated_sparse_lowrank() -> Iterator[str]:
    for kernel in ("sparse_matmul", "sparse_sample"):
        yield f"{kernel}_kernel"
        yield from (f"{kernel}_mma_kernel<(FloatType){i}>" for i in (1, 2))
    yield from ("sparse_transpose_kernel", "sparse_sum_kernel")


def _simulated_fp4() -> Iterator[str]:
    flags = ("false", "true")
    yield from (f"{kernel}_kernel<{flag}>" for kernel in ("join", "fold") for flag in flags)
    yield "quantize_kernel<false, false>"
    yield from (f"quantize_kernel<true, {plain}>" for plain in flags)
    yield from ("scan_kernel", "hadamard_kernel", "signs_kernel")
    carriers = [f"Carriers<(Fp8){a}, (Fp8){b}>, 256, 4" for a in (0, 1) for b in (0, 1)]
    codes = ("FoldedCodes", "BF16Codes")
    for tile in (*carriers, *(f"{source}, 256, 3" for source in codes)):
        yield f"matmul_kernel<MatmulConfig<{tile}>>"
    yield from (f"arrange_scales_kernel<{source}>" for source in codes)
    yield "exact_kernel"


SIMULATED = {
    "int4fp8": _simulated_int4fp8,
    "fp4": _simulated_fp4,
    "prefill": _simulated_prefill,
    "atoms": _simulated_atoms,
    "rebuild": _simulated_rebuild,
    "sparse_lowrank": _simulated_sparse_lowrank,
}


def simulated_kernels() -> set[str]:
    """Names, as in the budget of the machine code, of what the simulator's tests run."""
    return {f"{family}::{name}" for family, names in SIMULATED.items() for name in names()}


def is_simulated(entry: Entry) -> bool:
    compiled = compiled_kernels(entry)
    return bool(compiled) and compiled <= simulated_kernels()


def measurements(rows: Iterable[Row], table: list[Entry]) -> dict[Entry, list[Row]]:
    """Dispatch row -> the rows of a GPU's benchmark that it served."""
    found: dict[Entry, list[Row]] = {entry: [] for entry in table}
    for row in rows:
        op = MEASURED_OPS.get((row.op, row.arm))
        if row.environment.device.startswith("CPU"):
            continue
        gpu = (e for e in table if e.op == op and e.architecture != "cpu" and e.serves(row.sizes))
        if entry := next(gpu, None):
            found[entry].append(row)
    return found


def state(entry: Entry, rows: list[Row]) -> str:
    if entry.architecture == "cpu":
        return "tested"
    if not rows:
        hopper = entry.architecture == "sm_90a"
        return "simulated" if hopper and is_simulated(entry) else "compiled"
    last = max(rows, key=lambda row: row.environment.date).environment
    same = [row for row in rows if row.environment == last]
    values = {name: sorted({row.sizes[name] for row in same}) for name in same[0].sizes}
    sizes = "; ".join(f"{name} = {', '.join(map(str, found))}" for name, found in values.items())
    day = last.date.partition("T")[0]
    return f"measured on {last.device}, {day}, {last.commit} ({sizes})"


def page(rows: Iterable[Row]) -> str:
    table = entries()
    measured = measurements(rows, table)
    lines = [
        f"| `{e.op}` | {e.architecture} | {e.condition} | {e.kernel} | {state(e, measured[e])} |\n"
        for e in table
    ]
    return HEADER + "".join(lines)


def results() -> list[Row]:
    return [row for path in sorted(RESULTS.rglob("*.jsonl")) for row in read_rows(path)]


if __name__ == "__main__":
    PAGE.write_text(page(results()))
