"""Plants bugs in kernels: builds each changed kernel and runs a family's cases on it.

A family keeps a list of `Mutant`s beside its tests, with cases by the instrumented file they run. A
case is anything picklable with `run() -> (findings, whether the result is the reference's)`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sim.run_mutant import run_cases
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


Cases = dict[str, list[Any]]  # of `Case` each, by the instrumented file they run


def control(source: str, mutants: Sequence[Mutant]) -> Mutant:
    """A file of this source, nothing changed."""
    file = next(mutant.file for mutant in mutants if mutant.source == source)
    return Mutant(f"nothing changed in {source}", "", file, source, ())


def apply(mutant: Mutant, overlay: Path) -> None:
    """Write the changed header below `overlay` at the path by which it is included."""
    text = (ROOT / mutant.file).read_text()
    for old, new in mutant.edits:
        assert text.count(old) == 1, f"{mutant.name}: {old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    target = overlay / Path(mutant.file).relative_to(Path(mutant.file).parts[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


# What every instrumented file includes and no mutant changes: compiled once per `run_all`.
_UNCHANGED = """
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>
"""
_SMALL = "-DWLIB_SIM_ONLY_SMALL"


def _compiler(source: str) -> tuple[list[str], list[str]]:
    """The words that call the compiler of this file, perhaps behind ccache, and its flags."""
    command = compile_command(source)
    flags = next(i for i, word in enumerate(command) if word.startswith("-"))
    return command[:flags], command[flags:]


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _precompile(source: str, folder: Path) -> list[str]:
    """Compile what no mutant changes below `folder`; the flags that use it."""
    header = folder / "unchanged.h"
    header.write_text(_UNCHANGED)
    compiler, flags = _compiler(source)
    _run([*compiler, *flags, _SMALL, "-xc++-header", str(header), "-o", f"{header}.gch"])
    return ["-include", str(header), "-Werror=invalid-pch"]


def _build(mutant: Mutant, folder: Path, precompiled: Sequence[str]) -> None:
    """Compile the instrumented file with the changed header first, link the other objects."""
    apply(mutant, folder / "overlay")
    compiler, flags = _compiler(mutant.source)
    changed = str(folder / f"{mutant.source}.o")
    objects = (BUILD / "CMakeFiles" / "wlib_probe.dir").rglob("*.o")
    others = [str(path) for path in objects if path.name != Path(changed).name]
    module = ["-o", str(folder / "wlib_probe.so"), changed, *others]
    source = str(ROOT / "csrc" / "probe" / mutant.source)
    overlay = [f"-I{folder / 'overlay'}", _SMALL, *precompiled]
    _run([*compiler, *overlay, *flags, source, "-o", changed])
    _run([*compiler, "-shared", "-Wl,-Bsymbolic", *module, "-ldl"])


# Forks from a server that has torch already; none of them loads two builds of a kernel.
_FORKS = multiprocessing.get_context("forkserver")


def _run_apart(pickled: Path, probe: Path) -> dict[str, Any]:
    """`run_cases` in a process of its own: a mutant may crash it or never end."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=run_cases, args=(pickled, probe, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(120):
            return {"fired": {}, "failed": "no result within 120 seconds"}
        result: dict[str, Any] = receiver.recv()
        return result
    except EOFError:
        process.join()
        return {"fired": {}, "failed": f"exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def run_all(
    mutants: Sequence[Mutant], cases: Mapping[str, Sequence[Case]], folder: Path
) -> Results:
    """Build every mutant below `folder` and run the cases of its source on it."""
    for source, its_cases in cases.items():
        (folder / f"{source}.pickle").write_bytes(pickle.dumps(its_cases))
    precompiled = _precompile(next(iter(cases)), folder)
    _FORKS.set_forkserver_preload(["wlib", "sim.run_mutant"])

    def run(index: int, mutant: Mutant) -> dict[str, Any]:
        try:
            _build(mutant, folder / str(index), precompiled)
        except subprocess.CalledProcessError as failure:  # of this mutant only
            return {"fired": {}, "failed": failure.stderr}
        return _run_apart(folder / f"{mutant.source}.pickle", folder / str(index))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, range(len(mutants)), mutants))
    return {mutant.name: result for mutant, result in zip(mutants, found, strict=True)}
