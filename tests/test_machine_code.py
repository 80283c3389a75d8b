"""The machine code of every kernel against the committed budget, and that the budget can fail."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

import machine_code
from machine_code import Kernel
from source_tree import BUILD, compile_command
from wlib._load import library_path, text

# A hand-written kernel takes 2 to 6 s to compile; a cold CI run has 15 minutes for all of them.
MAX_KERNELS = 132
WEIGHTS_PER_WGMMA = 8  # per thread, in the decode kernel: 64 weights and 8 wgmmas a tile
MAX_ALU_PER_WEIGHT = 0.75

GATE = Path(__file__).parents[1] / "cmake" / "ptxas_gate.sh"


pytestmark = pytest.mark.skipif(
    text("wlib_cuda_summary").startswith("none"), reason="wlib was built without CUDA"
)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return machine_code.measure(library_path())


def decode(kernels: dict[str, Kernel]) -> dict[str, Kernel]:
    """Configuration -> counts of the decode kernels."""
    prefix = "int4fp8::decode_kernel<DecodeConfig<"
    return {
        name.removeprefix(prefix).removesuffix(">>"): kernel
        for name, kernel in kernels.items()
        if name.startswith(prefix)
    }


def test_budget(kernels: dict[str, Kernel]) -> None:
    print(machine_code.table(kernels))
    assert machine_code.violations(kernels, machine_code.read_budget()) == []


def test_number_of_kernels(kernels: dict[str, Kernel]) -> None:
    assert len(kernels) <= MAX_KERNELS


def test_nothing_is_spilled_or_kept_in_local_memory(kernels: dict[str, Kernel]) -> None:
    assert not {name for name, k in kernels.items() if k.stack or k.local or k.spills}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_fp16_scores_take_fewer_instructions(kernels: dict[str, Kernel], head_dim: int) -> None:
    """Per step of 32 scores a thread. With 256 channels FP32's step may also skip its wgmmas."""
    name = "prefill::attention_kernel<AttentionConfig<{}, {}, false>>"
    fp32, fp16 = (kernels[name.format(head_dim, half)].step for half in ("false", "true"))
    assert fp32 - fp16 >= 2 * 32
    assert fp16 <= 13 * 32


def test_decode_kernels_feed_the_tensor_cores_from_bulk_copies(kernels: dict[str, Kernel]) -> None:
    found = decode(kernels)
    assert len(found) == 4 * 3 * 2  # token tiles, groups per tile, zero points
    for name, kernel in found.items():
        groups, zeros = int(name.split(", ")[1]), name.split(", ")[2] == "true"
        assert kernel.wgmma == 8  # four k steps, each with the weights and with a constant
        assert kernel.waits == groups * (1 + zeros)
        assert kernel.bulk_copies > 0
        assert kernel.tensor_copies > 0


def test_alu_instructions_per_weight(kernels: dict[str, Kernel]) -> None:
    for name, kernel in decode(kernels).items():
        per_weight = kernel.alu / (kernel.wgmma * WEIGHTS_PER_WGMMA)
        print(f"{name}: {per_weight:.3f}")
        assert per_weight > 0.5  # five logic operations for eight weights are the least there is
        assert per_weight <= MAX_ALU_PER_WEIGHT, name


def test_the_compiler_may_not_contract_what_decides_codes_of_fp4() -> None:
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    (entry,) = (e for e in entries if e["file"].endswith("/fp4/sm90_quantize.cu"))
    assert "--fmad=false" in entry["command"].split()


def test_fp4_matmuls_do_not_wait_more_than_they_say(kernels: dict[str, Kernel]) -> None:
    prefix = "fp4::matmul_kernel<MatmulConfig<"
    found = {name.removeprefix(prefix): k for name, k in kernels.items() if name.startswith(prefix)}
    assert len(found) == 4 + 2  # pairs of carriers; codes as FP8, as BF16
    for name, kernel in found.items():
        assert kernel.wgmma == 4 * 4  # k steps, parts of the columns
        assert kernel.waits == 4  # parts
        packed = not name.startswith("Carriers")
        # A thread has 64 codes (32 for BF16), and eleven instructions expand eight.
        assert kernel.alu <= (100 if packed else 10), name


def test_rotations_share_sums_of_their_first_pairs(kernels: dict[str, Kernel]) -> None:
    """Of 8 k steps times 16 columns; two types, rows and columns. Each column more of the first
    four steps that is not shared would be a product of tensor cores more."""
    shared = 2 + 4 + 8 + 8
    products = 2 * 2 * (shared + 4 * 16)
    copies = {
        "quantize_kernel<true, true>": 0.5,  # BF16 only
        "quantize_kernel<true, false>": 1,
        "quantize_kernel<false, false>": 2,  # also before the squares are known
        "scan_kernel": 1,
        "fold_kernel<true>": 0.5,
        "fold_kernel<false>": 1,
    }
    assert {n: kernels[f"fp4::{n}"].mma / products for n in copies} == copies


def test_quantisers_leave_room_for_a_thousand_threads(kernels: dict[str, Kernel]) -> None:
    found = {name: k for name, k in kernels.items() if name.startswith("int4fp8::quantize_kernel<")}
    assert len(found) == 3 * 3  # inputs, types
    assert not {name for name, kernel in found.items() if kernel.registers > 64}


@pytest.mark.parametrize("column", machine_code.COLUMNS)
def test_each_column_of_the_budget_can_fail(column: str) -> None:
    budget = machine_code.read_budget()
    name = next(iter(budget))
    more = dataclasses.replace(budget[name], **{column: getattr(budget[name], column) + 1})
    assert machine_code.violations({**budget, name: more}, budget) == [
        f"{name}: {column} {getattr(more, column)} instead of {getattr(budget[name], column)}"
    ]
    less = machine_code.violations(budget, {**budget, name: more})
    assert len(less) == (column in machine_code.EXACT)


def test_a_missing_and_an_unknown_kernel_fail() -> None:
    budget = machine_code.read_budget()
    name, *others = budget
    rest = {other: budget[other] for other in others}
    assert machine_code.violations(rest, budget) == [f"{name}: no longer in the library"]
    assert machine_code.violations(budget, rest) == [f"{name}: not in the budget"]


SPILLING = """
namespace wlib::planted {
__global__ void __launch_bounds__(1024, 2) kernel(float* p) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = v[i] * v[63 - i] + v[(i * 7) % 64];
}
}  // namespace wlib::planted
"""

SERIALIZED = """
#include "wlib/sm90/wgmma.h"
namespace wlib::planted {
using Op = sm90::WgmmaE4M3<8>::Rs;
__global__ void kernel(float* p, uint64_t b) {
  float d[4] = {};
  const uint32_t a[4] = {1, 2, 3, 4};
  for (int i = 0; i < int(b); ++i) {
    sm90::wgmma_fence();
    sm90::wgmma<Op>(d, a, b, true);
    sm90::wgmma_commit();
    d[0] += 1;  // while the tensor core is still adding to it
  }
  sm90::wgmma_wait<0>(d);
  for (int i = 0; i < 4; ++i) p[i] = d[i];
}
}  // namespace wlib::planted
"""


def build(
    source: str, folder: Path, *, drop: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Compile a kernel with the flags of the library's own, through the gate."""
    file = folder / "planted.cu"
    file.write_text(source)
    flags = [flag for flag in compile_command("sm90_quantize.cu") if flag not in drop]
    return subprocess.run(
        [str(GATE), *flags, str(file), "-o", str(folder / "planted.o")],
        capture_output=True,
        text=True,
    )


def test_a_spill_is_counted_and_fails_the_build(tmp_path: Path) -> None:
    done = build(SPILLING, tmp_path)
    assert done.returncode != 0
    assert "spill" in done.stderr.lower()
    assert build(SPILLING, tmp_path, drop=("-Werror=all-warnings",)).returncode == 0
    planted = machine_code.measure(tmp_path / "planted.o")["planted::kernel"]
    assert planted.spills > 0
    assert planted.stack > 0


def test_a_serialized_wgmma_fails_the_build(tmp_path: Path) -> None:
    done = build(SERIALIZED, tmp_path, drop=("-Werror=all-warnings",))
    assert done.returncode != 0
    assert "ptxas gave up on asynchronous wgmma" in done.stderr
