"""Bugs planted in the kernels of fp4_matmul, and the check that catches each."""

from __future__ import annotations

from sim.planting import Mutant

KERNEL = "csrc/fp4/sm90_matmul.h"
CONFIG = "csrc/fp4/sm90_matmul_config.h"
STORE = "csrc/fp4/sm90_matmul_store.h"
EXPAND = "csrc/fp4/sm90_expand.h"
VOTE = "csrc/fp4/sm90_vote.h"
SCALES = "csrc/fp4/sm90_scales.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(f"fp4_matmul: {name}", caught_by, file, "sim_fp4_matmul.cpp", *texts)


_START = """  if constexpr (C::kCtas == 1)
    sm90::block_sync();
  else
    sm90::cluster_sync();
"""
_END = "  if constexpr (C::kCtas > 1) sm90::cluster_sync();"
MUTANTS = [
    mutant("full wait missing", "smem-race-copy", KERNEL, "    s.ring.wait_full(at);\n", ""),
    mutant(
        "empty wait missing", "mbarrier", KERNEL, "s.ring.template wait_empty<C::kCtas>(at);", ""
    ),
    mutant(
        "one CTA releases for two",
        "smem-overwrite-wgmma",
        CONFIG,
        "kConsumers * kCtas * 4",
        "kConsumers * 4",
    ),
    mutant(
        "no cluster barrier before the first copy",
        "mbarrier",
        KERNEL,
        _START,
        "sm90::block_sync();\n",
    ),
    mutant("CTA leaves while its peer arrives", "exit", KERNEL, _END, ""),
    mutant(
        "halves of b in one place", "smem-uninitialised", KERNEL, "rank * kShare * kRowBytes", "0"
    ),
    mutant(
        "first half of b twice",
        "numerics",
        KERNEL,
        "C::kTileColumns + rank * kShare;",
        "C::kTileColumns;",
    ),
    mutant("codes fetched into a stage in use", "smem-race", KERNEL, "s.ring.wait_empty(to);", ""),
    mutant(
        "codes expanded before they are there",
        "smem-race-copy",
        KERNEL,
        "sm90::mbarrier_wait(s.raw_full[at.stage], at.parity);",
        "",
    ),
    mutant(
        "codes read as if they were not swizzled",
        "numerics",
        KERNEL,
        "swizzled<kBytes>(row, c * 16)",
        "(row * kBytes + c * 16)",
    ),
    mutant(
        "scales of other rows", "numerics", KERNEL, "from.b_scales[row]", "from.b_scales[row ^ 1]"
    ),
    mutant(
        "chunks of expanded codes not swizzled",
        "numerics",
        KERNEL,
        "swizzled<kRowBytes>(row, chunk * 16)",
        "(row * kRowBytes + chunk * 16)",
    ),
    mutant(
        "signs of even codes for odd ones",
        "numerics",
        EXPAND,
        "(even, codes, 0x5140)",
        "(codes, even, 0x5140)",
    ),
    mutant("expanded codes not fenced", "proxy-fence", KERNEL, "sm90::fence_proxy_async();", ""),
    mutant(
        "stage handed over before all have expanded",
        "smem-race",
        KERNEL,
        "sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);",
        "",
    ),
    mutant(
        "scales of the first stage for all", "numerics", KERNEL, "int64_t(walk.k) * p.b_pitch", "0"
    ),
    mutant("scales of the first rows for all", "numerics", KERNEL, "a_scales + a_row", "a_scales"),
    mutant("fence missing", "wgmma-fence", KERNEL, "  sm90::wgmma_fence();\n", ""),
    mutant(
        "wait missing", "wgmma-register", KERNEL, "  sm90::wgmma_wait<kPending>(products);\n", ""
    ),
    mutant("last products added in flight", "wgmma-register", KERNEL, "  add<0>(", "  add<1>("),
    mutant(
        "products added in flight",
        "wgmma-register",
        KERNEL,
        "add<1>(products[(",
        "add<2>(products[(",
    ),
    mutant(
        "sums used in flight",
        "wgmma-register",
        KERNEL,
        "wgmma_wait<0>(sum[part])",
        "wgmma_wait<1>(sum[part])",
    ),
    mutant(
        "first rows of b for all",
        "numerics",
        KERNEL,
        "multiply_part<C, false>(a, b + part * kDescriptorPart",
        "multiply_part<C, false>(a, b",
    ),
    mutant(
        "halves and rows of a fragment swapped",
        "numerics",
        KERNEL,
        "% kHalves * 2 + r",
        "% kHalves + 2 * r",
    ),
    mutant("sign of a code as a magnitude", "numerics", EXPAND, "codes & 0x77777777u", "codes"),
    mutant("odd codes as even ones", "numerics", EXPAND, "0x00f000f0u", "0x000f000fu"),
    mutant("votes read before they are cast", "smem-race", VOTE, "  sm90::block_sync();\n", ""),
    mutant(
        "wide scales folded all the same",
        "numerics",
        SCALES,
        "wide |= !is_zero(",
        "wide &= !is_zero(",
    ),
    mutant("NaN folded", "numerics", SCALES, "        wide = true;\n", "        {}\n"),
    mutant(
        "one flag for all",
        "global-race",
        SCALES,
        "p.to.wide[sm90::block_index_x()]",
        "p.to.wide[0]",
    ),
    mutant("scale of half a block", "global-bounds", SCALES, "scales[half / 2]", "scales[half]"),
    mutant(
        "rows beyond the last stored", "global-bounds", STORE, "    if (row >= p.m) return;\n", ""
    ),
    mutant("column beyond the last stored", "global-race", STORE, "if (both) y[", "y["),
]
