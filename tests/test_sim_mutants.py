"""Every bug planted in the int4fp8 kernels is caught, by the check we expect."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize_problems import GroupSumsCase, QuantizeCase
from sim.mutants import CONTROL, MUTANTS, Mutant, apply
from sim_problems import (
    COOPERATIVE_INSTANCES,
    INSTANCES,
    GemmCase,
    Shape,
    exact_problem,
)
from source_tree import BUILD, ROOT, compile_command

SMALL, SMALL_ZEROS, _ = INSTANCES[-3:]
Case = GemmCase | QuantizeCase | GroupSumsCase
Cases = dict[str, list[Case]]  # by the instrumented file they run


def gemm_case(rng: np.random.Generator, shape: Shape, **arguments: Any) -> GemmCase:
    problem = exact_problem(rng, shape)
    problem.bias = np.arange(shape.n, dtype=np.float32)
    return GemmCase(problem, problem.packed(), arguments)


def make_cases() -> Cases:
    """Two items or more per cluster or CTA, tails everywhere, more than twice round the rings."""
    cases: Cases = {"sim_int4fp8.cpp": [], "sim_cooperative.cpp": [], "sim_quantize.cpp": []}
    for seed, (split, timing) in enumerate(itertools.product((1, 2), ("random", "lazy", "eager"))):
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"seed": seed, "timing": timing}
        for instance, group_size in ((SMALL, 128), (SMALL_ZEROS, 64)):
            shape = Shape(13, 71, 128 * 9, group_size, bool(instance.zero_points))
            case = gemm_case(rng, shape, instance=instance, split=split, **options)
            cases["sim_int4fp8.cpp"].append(case)
        rows = rng.standard_normal((3, 4097)).astype(np.float32)
        cases["sim_quantize.cpp"].append(QuantizeCase(rows, options))
        codes = rng.integers(0, 127, (5, 1120)).astype(np.uint8)
        cases["sim_quantize.cpp"] += [GroupSumsCase(codes, log2, options) for log2 in (5, 7)]
        for small, group_size in zip(COOPERATIVE_INSTANCES[-2:], (128, 64), strict=True):
            shape = Shape(70, 135, 128 * 5, group_size, bool(small.zero_points))
            case = gemm_case(rng, shape, instance=small, ctas=split, **options)
            cases["sim_cooperative.cpp"].append(case)
    return cases


def build(mutant: Mutant, folder: Path) -> None:
    """Compile the instrumented file with the changed header first, link the other objects."""
    apply(mutant, folder / "overlay")
    command = compile_command(mutant.source)
    flags = next(i for i, word in enumerate(command) if word.startswith("-"))
    compiler = command[:flags]  # perhaps behind ccache
    command[flags:flags] = [f"-I{folder / 'overlay'}", "-DWLIB_SIM_ONLY_SMALL"]
    changed = str(folder / f"{mutant.source}.o")
    objects = (BUILD / "CMakeFiles" / "wlib_probe.dir").rglob("*.o")
    others = [str(path) for path in objects if path.name != Path(changed).name]
    module = ["-o", str(folder / "wlib_probe.so"), changed, *others]
    source = str(ROOT / "csrc" / "probe" / mutant.source)
    compile_it = [*command, source, "-o", changed]
    for step in (compile_it, [*compiler, "-shared", "-Wl,-Bsymbolic", *module, "-ldl"]):
        subprocess.run(step, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mutants")
    for source, cases in make_cases().items():
        (folder / f"{source}.pickle").write_bytes(pickle.dumps(cases))

    def run(index: int, mutant: Mutant) -> dict[str, Any]:
        try:
            build(mutant, folder / str(index))
        except subprocess.CalledProcessError as failure:  # of this mutant only
            return {"fired": {}, "failed": failure.stderr}
        cases = str(folder / f"{mutant.source}.pickle")
        runner = [sys.executable, str(ROOT / "tests" / "sim" / "run_mutant.py"), cases]
        environment = {**os.environ, "WLIB_PROBE_DIR": str(folder / str(index))}
        done = subprocess.run(runner, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    everything = [CONTROL, *MUTANTS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, range(len(everything)), everything))
    return {mutant.name: result for mutant, result in zip(everything, found, strict=True)}


def test_every_edit_fits_the_sources(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        apply(mutant, tmp_path)


@pytest.mark.slow
def test_the_original_is_silent(results: dict[str, dict[str, Any]]) -> None:
    assert results[CONTROL.name] == {"cases": 12, "fired": {}, "first": {}}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: dict[str, dict[str, Any]], mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
