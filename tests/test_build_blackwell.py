"""The opt-in build for Blackwell: a matmul per architecture and the quantiser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from machine_code import dump, instructions, spilling
from source_tree import ROOT, cmake_tools
from wlib._load import text

FOLDER = ROOT / "build" / "blackwell"
ARCHS = "90a;100a;120a"
# One format per architecture, to BF16: what multiplies codes with their scales in the machine code.
MMAS = {
    "sm_100a": ("fp4_block_scaled_matmul_4_sm100a", "UTCOMMA.2CTA.4X"),  # nvfp4
    "sm_120a": ("fp4_block_scaled_matmul_1_sm120a", "OMMA.SF.16864.F32.E2M1.E2M1.E8"),  # mxfp4
}
DISPATCH = "fp4_block_scaled_dispatch_0"
QUANTIZER = "fp4_sm90_quantize_0"  # has nothing of Hopper's own

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        text("wlib_cuda_summary").startswith("none"), reason="wlib was built without CUDA"
    ),
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def configure(folder: Path, archs: str) -> subprocess.CompletedProcess[str]:
    cmake, ninja = cmake_tools()
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    source = ["-G", "Ninja", "-S", str(ROOT), "-B", str(folder)]
    return run(cmake, *source, *options, f"-DWLIB_CUDA_ARCHS={archs}")


@pytest.fixture(scope="module")
def objects() -> dict[str, Path]:
    """Target -> its object file; the build folder is kept."""
    done = configure(FOLDER, ARCHS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sm_90a, sm_100a, sm_120a (nvcc" in done.stdout
    targets = [*(target for target, _ in MMAS.values()), DISPATCH, QUANTIZER]
    done = run(cmake_tools()[0], "--build", str(FOLDER), "-j2", "--target", *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    return {target: next(FOLDER.rglob(f"{target}.dir/*.o")) for target in targets}


@pytest.mark.parametrize("arch", MMAS)
def test_kernel_multiplies_with_scales(arch: str, objects: dict[str, Path]) -> None:
    target, mma = MMAS[arch]
    listing = dump(objects[target], "-sass")
    assert set(re.findall(r"arch = (\w+)", listing)) == {arch}
    names = Counter(i.name for i in instructions(listing))
    assert {name for name in names if "MMA" in name} == {mma}
    assert names[mma] >= 8
    assert any(name.startswith("UTMALDG") for name in names)
    assert spilling(objects[target]) == []


def test_quantizer_is_compiled_for_every_architecture(objects: dict[str, Path]) -> None:
    kernels = {
        arch: re.findall(r"Function : (\w+)", dump(objects[QUANTIZER], "-arch", arch, "-sass"))
        for arch in ("sm_90a", *MMAS)
    }
    assert len({tuple(sorted(names)) for names in kernels.values()}) == 1
    assert len(kernels["sm_90a"]) == 10
    assert spilling(objects[QUANTIZER]) == []


def symbols(path: Path, kind: str) -> set[str]:
    """Undefined (U) or defined (T) functions launch_block_scaled of an object file."""
    listing = run("nm", "-C", str(path)).stdout
    return set(re.findall(rf" {kind} .*(launch_block_scaled<.*?>)\(", listing))


def test_dispatch_table_asks_for_what_is_compiled(objects: dict[str, Path]) -> None:
    wanted = symbols(objects[DISPATCH], "U")
    assert len(wanted) == 2 * 2 * 3  # architectures, formats, types of the output
    for target, _ in MMAS.values():
        (made,) = symbols(objects[target], "T")
        assert made in wanted


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ("90a;100", "expected some of 90a, 100a, 120a, got 100"),
        ("100a", "expected 90a among them, got 100a"),
    ],
)
def test_other_architectures_are_refused(archs: str, message: str, tmp_path: Path) -> None:
    done = configure(tmp_path, archs)
    assert done.returncode != 0
    assert f"WLIB_CUDA_ARCHS: {message}" in done.stderr
