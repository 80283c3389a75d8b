"""What this installation is and which kernels it would run where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._load import library_path, text

# The folders of csrc.
FAMILIES = ("int4fp8", "prefill", "atoms", "rebuild", "sparse_lowrank", "fp4")


@dataclass(frozen=True)
class Info:
    """Facts about the loaded library.

    Attributes:
        version: version of wlib.
        build_id: hash of the sources the library was compiled from.
        library: path of the compiled library.
        torch: version of torch, and of the CUDA it was built with, if any.
        devices: the CPU's instruction set, and name and compute capability of each GPU.
        cuda_kernels: architectures the library has GPU code for, and the compiler that made it.
        dispatch: op -> the rows of its dispatch table, in the order in which they are tried.
        tiles: which tile of int4fp8_gemm serves more than 64 tokens, for M, N, K on 132 SMs.
    """

    version: str
    build_id: str
    library: str
    torch: str
    devices: tuple[str, ...]
    cuda_kernels: str
    dispatch: dict[str, tuple[str, ...]]
    tiles: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"wlib {self.version}, build {self.build_id}",
            f"library       {self.library}",
            f"torch         {self.torch}",
            f"CUDA kernels  {self.cuda_kernels}",
            *(f"device        {device}" for device in self.devices),
        ]
        for op, rows in self.dispatch.items():
            lines += [f"torch.ops.wlib.{op}", *(f"  {row}" for row in rows)]
        lines += ["int4fp8_gemm, more than 64 tokens, by counted cycles on 132 SMs"]
        lines += [f"  {tile}" for tile in self.tiles]
        return "\n".join(lines)


def info() -> Info:
    """Version, build, devices and the dispatch table of every op."""
    devices = [f"cpu ({text('wlib_cpu_isa')})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name}, sm_{properties.major}{properties.minor}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Info(
        version=text("wlib_version"),
        build_id=text("wlib_build_id"),
        library=str(library_path()),
        torch=f"{torch.__version__} ({cuda})",
        devices=tuple(devices),
        cuda_kernels=text("wlib_cuda_summary"),
        dispatch={op: rows for family in FAMILIES for op, rows in family_dispatch(family).items()},
        tiles=tuple(text("wlib_int4fp8_tiles").splitlines()),
    )


def family_dispatch(family: str) -> dict[str, tuple[str, ...]]:
    """The dispatch table of every op of one of FAMILIES."""
    table: dict[str, tuple[str, ...]] = {}
    for line in text(f"wlib_{family}_dispatch").splitlines():
        op, _, row = line.partition(": ")
        table[op] = (*table.get(op, ()), row)
    return table
