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

from sim.mutants import CONTROL, MUTANTS, Mutant, apply
from sim_problems import INSTANCES, DecodeCase, QuantizeCase, Shape, exact_problem
from source_tree import BUILD, ROOT, compile_command

SOURCE = ROOT / "csrc" / "probe" / "sim_int4fp8.cpp"
SMALL, SMALL_ZEROS, _ = INSTANCES[-3:]


def make_cases() -> list[DecodeCase | QuantizeCase]:
    """Two items or more per cluster, tails everywhere, twice round the rings of two stages."""
    cases: list[DecodeCase | QuantizeCase] = []
    for seed, (split, timing) in enumerate(itertools.product((1, 2), ("random", "lazy", "eager"))):
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"seed": seed, "timing": timing}
        for instance, group_size in ((SMALL, 128), (SMALL_ZEROS, 64)):
            shape = Shape(13, 71, 128 * 9, group_size, bool(instance.zero_points))
            problem = exact_problem(rng, shape)
            problem.bias = np.arange(71, dtype=np.float32)
            arguments = {"instance": instance, "split": split, **options}
            cases.append(DecodeCase(problem, problem.packed(), arguments))
        cases.append(QuantizeCase(rng.standard_normal((3, 4097)).astype(np.float32), options))
    return cases


def build(mutant: Mutant, folder: Path) -> None:
    """Compile the instrumented file with the changed header first, link the other objects."""
    apply(mutant, folder / "overlay")
    command = compile_command(SOURCE.name)
    flags = next(i for i, word in enumerate(command) if word.startswith("-"))
    compiler = command[:flags]  # perhaps behind ccache
    command[flags:flags] = [f"-I{folder / 'overlay'}", "-DWLIB_SIM_ONLY_SMALL"]
    changed = str(folder / f"{SOURCE.name}.o")
    objects = (BUILD / "CMakeFiles" / "wlib_probe.dir").rglob("*.o")
    others = [str(path) for path in objects if path.name != Path(changed).name]
    module = ["-o", str(folder / "wlib_probe.so"), changed, *others]
    compile_it = [*command, str(SOURCE), "-o", changed]
    for step in (compile_it, [*compiler, "-shared", "-Wl,-Bsymbolic", *module, "-ldl"]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, f"{mutant.name}:\n{done.stderr}"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mutants")
    cases = folder / "cases.pickle"
    cases.write_bytes(pickle.dumps(make_cases()))

    def run(index: int, mutant: Mutant) -> dict[str, Any]:
        build(mutant, folder / str(index))
        runner = [sys.executable, str(ROOT / "tests" / "sim" / "run_mutant.py"), str(cases)]
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
    assert results[CONTROL.name]["fired"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_planted_bug_is_caught(results: dict[str, dict[str, Any]], mutant: Mutant) -> None:
    result = results[mutant.name]
    assert mutant.caught_by in result["fired"], result
