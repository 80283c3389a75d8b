"""Plants bugs in kernels: builds each changed kernel and runs a family's cases on it.

A family keeps a list of `Mutant`s beside its tests, with cases by the instrumented file they run. A
case is anything picklable with `run() -> (findings, whether the result is the reference's)`.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from source_tree import BUILD, ROOT, compile_command

Results = dict[str, dict[str, Any]]  # name of the mutant -> cases, how often each check fired


class Case(Protocol):
    def run(self) -> tuple[list[Any], bool]: ...


@dataclass(frozen=True)
class Mutant:
    name: str
    caught_by: str  # `numerics` is the comparison with the reference; else a check of the simulator
    file: str
    source: str  # the instrumented file whose kernels show the bug
    edits: tuple[tuple[str, str], ...]  # (old, new), each old text occurring once

    @classmethod
    def of(cls, name: str, caught_by: str, file: str, source: str, *texts: str) -> Mutant:
        """Of old and new texts in turn."""
        return cls(name, caught_by, file, source, tuple(zip(texts[0::2], texts[1::2], strict=True)))


def apply(mutant: Mutant, overlay: Path) -> None:
    """Write the changed header below `overlay` at the path by which it is included."""
    text = (ROOT / mutant.file).read_text()
    for old, new in mutant.edits:
        assert text.count(old) == 1, f"{mutant.name}: {old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    target = overlay / Path(mutant.file).relative_to(Path(mutant.file).parts[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def _build(mutant: Mutant, folder: Path) -> None:
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


def run_all(
    mutants: Sequence[Mutant], cases: Mapping[str, Sequence[Case]], folder: Path
) -> Results:
    """Build every mutant below `folder` and run the cases of its source on it."""
    for source, its_cases in cases.items():
        (folder / f"{source}.pickle").write_bytes(pickle.dumps(its_cases))

    def run(index: int, mutant: Mutant) -> dict[str, Any]:
        try:
            _build(mutant, folder / str(index))
        except subprocess.CalledProcessError as failure:  # of this mutant only
            return {"fired": {}, "failed": failure.stderr}
        pickled = str(folder / f"{mutant.source}.pickle")
        runner = [sys.executable, str(ROOT / "tests" / "sim" / "run_mutant.py"), pickled]
        environment = {**os.environ, "WLIB_PROBE_DIR": str(folder / str(index))}
        done = subprocess.run(runner, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode:  # it crashed: of this mutant only, too
            return {"fired": {}, "failed": f"exit status {done.returncode}: {done.stderr}"}
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, range(len(mutants)), mutants))
    return {mutant.name: result for mutant, result in zip(mutants, found, strict=True)}
