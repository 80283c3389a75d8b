"""What the lists of planted bugs share: the files they change, and how an edit is written.

`numerics` is the comparison with the float64 reference; every other name is one of the simulator's.
"""

from __future__ import annotations

from sim.planting import Mutant

KERNEL = "csrc/int4fp8/sm90_decode.h"
CONFIG = "csrc/int4fp8/sm90_decode_config.h"
QUANTIZER = "csrc/int4fp8/sm90_quantize.h"
QUANTIZER_ROWS = "csrc/int4fp8/sm90_quantize_rows.h"
STORE = "csrc/int4fp8/sm90_store.h"
COOPERATIVE = "csrc/int4fp8/sm90_cooperative.h"
COOPERATIVE_CONFIG = "csrc/int4fp8/sm90_cooperative_config.h"
FRAGMENTS = "csrc/int4fp8/sm90_fragments.h"
GROUP_SUMS = "csrc/int4fp8/sm90_group_sums.h"
RING = "include/wlib/sm90/ring.h"
WGMMA = "include/wlib/sm90/wgmma.h"
SOURCES = {  # the instrumented file of kernels other than the decode kernel
    COOPERATIVE: "sim_cooperative.cpp",
    COOPERATIVE_CONFIG: "sim_cooperative.cpp",
    QUANTIZER: "sim_quantize.cpp",
    QUANTIZER_ROWS: "sim_quantize.cpp",
    GROUP_SUMS: "sim_quantize.cpp",
}


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, SOURCES.get(file, "sim_int4fp8.cpp"), *texts)
