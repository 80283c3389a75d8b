"""What the machine code of every kernel holds, against the committed budget.

`python tools/machine_code.py build/dev/_C.so` prints one row per kernel and exits with 1 if a row
breaks the budget, or if a kernel for Blackwell spills; with `--update` it writes the budget anew.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUDGET = Path(__file__).resolve().parents[1] / "tests" / "machine_code.toml"
CUOBJDUMP = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
HEADER = """\
# What the machine code of every kernel holds; written by `python tools/machine_code.py --update`.
# Exact: registers, wgmma, mma, bulk_copies, tensor_copies. Upper bounds: everything else.
"""

# By pipe, without what follows the first dot. Decoding weights fills the ALU pipe; the FMA pipe has
# room, which is why moves as IMAD.MOV count there.
ALU = {"BMSK", "FLO", "FMNMX", "FSEL", "FSETP", "IABS", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3",
       "MOV", "PLOP3", "POPC", "PRMT", "R2UR", "SEL", "SGXT", "SHF", "VIADD", "VIADDMNMX",
       "VIMNMX"}  # fmt: skip
FMA = {"FADD", "FFMA", "FMUL", "IMAD", "HADD2", "HFMA2", "HMUL2"}
WGMMA = {"BGMMA", "HGMMA", "IGMMA", "QGMMA"}
MMA = {"BMMA", "HMMA", "IMMA", "QMMA"}

INSTRUCTION = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)\s*(?P<rest>[^;]*);",
    re.MULTILINE,
)
RESOURCES = re.compile(r"^ Function (?P<name>\w+):\n\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", re.M)


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # with its modifiers, e.g. LOP3.LUT
    target: int  # of a branch, else -1

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Kernel:
    """Counts of one kernel.

    Bytes: stack, local. Per thread: registers. All others are instructions, of the whole kernel
    (size: all of them; mma: products of single warps) or, for loop, alu and fma, of its main loop:
    the shortest one around all wgmmas, if there is one.
    Step: one pass of the shortest loop around any wgmma, without what branches forward skip. Waits
    are for wgmmas: more than the source asks for means that ptxas has serialised them.
    """

    size: int
    registers: int
    wgmma: int
    mma: int
    bulk_copies: int
    tensor_copies: int
    stack: int
    local: int
    spills: int
    waits: int
    loop: int
    alu: int
    fma: int
    step: int


EXACT = ("registers", "wgmma", "mma", "bulk_copies", "tensor_copies")
COLUMNS = tuple(field.name for field in fields(Kernel))


def dump(library: Path, *options: str) -> str:
    command = [str(CUOBJDUMP), *options, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def instructions(listing: str) -> list[Instruction]:
    """The instructions of one kernel in a listing of cuobjdump."""
    found = []
    for match in INSTRUCTION.finditer(listing):
        branch = re.search(r"0x([0-9a-f]+)\s*$", match["rest"].strip())
        target = int(branch[1], 16) if branch and match["name"].startswith("BRA") else -1
        found.append(Instruction(int(match["address"], 16), match["name"], target))
    return found


def main_loop(code: list[Instruction]) -> list[Instruction]:
    wgmmas = [i.address for i in code if i.base in WGMMA]
    if not wgmmas:
        return []
    loops = [
        (i.address - i.target, i.target, i.address)
        for i in code
        if 0 <= i.target <= wgmmas[0] and i.address >= wgmmas[-1]
    ]
    if not loops:
        return []
    _, first, last = min(loops)
    return [i for i in code if first <= i.address <= last]


def step(code: list[Instruction]) -> int:
    """Instructions that are executed if every branch forward inside of the loop is taken."""
    wgmmas = [i.address for i in code if i.base in WGMMA]
    loops = [
        (i.address - i.target, i.target, i.address)
        for i in code
        if i.target >= 0 and any(i.target <= address <= i.address for address in wgmmas)
    ]
    if not loops:
        return 0
    _, at, last = min(loops)
    executed = 0
    for i in code:
        if at <= i.address <= last:
            executed += 1
            if i.address < i.target <= last:
                at = i.target
    return executed


def count(code: list[Instruction], registers: int, stack: int, local: int) -> Kernel:
    bases = Counter(i.base for i in code)
    loop = main_loop(code)
    return Kernel(
        size=len(code) - bases["NOP"],
        registers=registers,
        wgmma=sum(bases[name] for name in WGMMA),
        mma=sum(bases[name] for name in MMA),
        bulk_copies=bases["UBLKCP"],
        tensor_copies=bases["UTMALDG"],
        stack=stack,
        local=local,
        spills=bases["LDL"] + bases["STL"],
        waits=sum(i.name.startswith("WARPGROUP.DEPBAR") for i in code),
        loop=len(loop),
        alu=sum(i.base in ALU for i in loop),
        fma=sum(i.base in FMA for i in loop),
        step=step(code),
    )


def readable(mangled: Iterable[str]) -> list[str]:
    """E.g. int4fp8::decode_kernel<DecodeConfig<8, 4, false, 4, 6>>."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True
    ).stdout
    names = []
    for line in text.splitlines():
        name = re.sub(r"\([^()]*\)$", "", line.removeprefix("void "))
        family = name.split("::")[1]
        names.append(family + "::" + re.sub(r"\bwlib::(\w+::)?", "", name).replace("> >", ">>"))
    return names


def measure_mangled(library: Path, arch: str) -> dict[str, Kernel]:
    """Mangled name -> counts, of every kernel in the library for this architecture."""
    resources = {
        match["name"]: [int(number) for number in match.groups()[1:]]
        for match in RESOURCES.finditer(dump(library, "-arch", arch, "-res-usage"))
    }
    listings = dict(
        part.split("\n", 1)
        for part in dump(library, "-arch", arch, "-sass").split("Function : ")[1:]
    )
    assert listings.keys() == resources.keys()
    return {
        name: count(instructions(listing), *resources[name]) for name, listing in listings.items()
    }


def measure(library: Path) -> dict[str, Kernel]:
    """Readable name -> counts, of every kernel in the library for sm_90a."""
    kernels = measure_mangled(library, "sm_90a")
    return dict(sorted(zip(readable(kernels), kernels.values(), strict=True)))


def spilling(library: Path) -> list[str]:
    """The kernels for Blackwell, which have no budget, that keep values in memory."""
    archs = set(re.findall(r"\bsm_1\d+a\b", dump(library, "--list-elf")))
    return [
        f"{name} for {arch}: stack {kernel.stack}, local {kernel.local}, spills {kernel.spills}"
        for arch in sorted(archs)
        for name, kernel in measure_mangled(library, arch).items()
        if kernel.stack or kernel.local or kernel.spills
    ]


def read_budget() -> dict[str, Kernel]:
    table = tomllib.loads(BUDGET.read_text())
    return {name: Kernel(**row) for name, row in table.items()}


def write_budget(kernels: Mapping[str, Kernel]) -> None:
    rows = [
        f'"{name}" = {{ '
        + ", ".join(f"{key} = {value}" for key, value in asdict(kernel).items())
        + " }\n"
        for name, kernel in kernels.items()
    ]
    BUDGET.write_text(HEADER + "".join(rows))


def violations(kernels: Mapping[str, Kernel], budget: Mapping[str, Kernel]) -> list[str]:
    """What the kernels do not keep of the budget, one line each."""
    found = [f"{name}: not in the budget" for name in kernels.keys() - budget.keys()]
    found += [f"{name}: no longer in the library" for name in budget.keys() - kernels.keys()]
    for name in sorted(kernels.keys() & budget.keys()):
        for column in COLUMNS:
            have, allowed = getattr(kernels[name], column), getattr(budget[name], column)
            if have > allowed or (column in EXACT and have < allowed):
                found.append(f"{name}: {column} {have} instead of {allowed}")
    return found


def table(kernels: Mapping[str, Kernel]) -> str:
    width = max(map(len, kernels))
    lines = [" " * width + "  " + "  ".join(COLUMNS)]
    for name, kernel in kernels.items():
        cells = (f"{value:{len(key)}}" for key, value in asdict(kernel).items())
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--update", action="store_true", help=f"write {BUDGET.name} anew")
    args = parser.parse_args()
    kernels = measure(args.library)
    print(table(kernels))
    if args.update:
        write_budget(kernels)
    broken = violations(kernels, read_budget()) + spilling(args.library)
    print("\n".join(broken))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
