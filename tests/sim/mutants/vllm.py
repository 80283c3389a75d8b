"""Planted bugs in the producer of caches with a row per token, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

TOKENS = "csrc/prefill/sm90_attention_tokens.h"
LAYOUT = "include/wlib/layout/int4_tokens.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_attention.cpp", *texts)


MUTANTS = [
    mutant(
        "expanded rows without a proxy fence",
        "proxy-fence",
        TOKENS,
        "    sm90::fence_proxy_async();  // what this thread wrote is for wgmma\n",
        "",
    ),
    mutant(
        "stage handed over before all have written it",
        "smem-uninitialised",
        TOKENS,
        "    sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);\n    if (leader)",
        "    if (leader)",
    ),
    mutant(
        "first rows read before they are found",
        "smem-uninitialised",
        TOKENS,
        "  sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);\n  for",
        "  for",
    ),
    mutant(
        "expanded stage overwritten while in use",
        "smem-overwrite-wgmma",
        TOKENS,
        "    s.ring.wait_empty(at);\n",
        "",
    ),
    mutant(
        "next rows in the stage that is expanded",
        "smem-race",
        TOKENS,
        "find_next(rows ^ 1)",
        "find_next(rows)",
    ),
    mutant(
        "rows behind the last key",
        "global-bounds",
        TOKENS,
        "tile.cached && key < tile.count",
        "tile.cached",
    ),
    mutant(
        "blocks of 64 tokens in the page table",
        "numerics",
        TOKENS,
        "position / p.block_tokens]",
        "position / kKeys]",
    ),
    mutant(
        "zero points of three bits",
        "numerics",
        LAYOUT,
        "std::bit_cast<uint32_t>(scale) & kZeroBits",
        "std::bit_cast<uint32_t>(scale) & 7",
    ),
    mutant(
        "negative differences one too small",
        "numerics",
        LAYOUT,
        "+ ones + negative",
        "+ negative",
    ),
    mutant(
        "odd channels of a key before even ones",
        "numerics",
        TOKENS,
        "permute_bytes(even, odd, 0x5140)",
        "permute_bytes(odd, even, 0x5140)",
    ),
    mutant(
        "channels of values in the order of their halves",
        "numerics",
        TOKENS,
        "word * 8 + 2 * c + odd",
        "word * 8 + c + 4 * odd",
    ),
    mutant(
        "words of values left out",
        "smem-race",
        TOKENS,
        "item / 8 % 4 + item / 64 * 4",
        "item / 8 % 4 + item / 128 * 4",
    ),
    mutant(
        "scales of the next step",
        "smem-race",
        TOKENS,
        "prepare_scales(s, p, walk.item, tile, rows, s",
        "prepare_scales(s, p, walk.item, tile, rows ^ 1, s",
    ),
    mutant(
        "values of the first KV head",
        "numerics",
        TOKENS,
        "p.v_cache + offset(p.v_rows)",
        "p.v_cache + row_offset(p.v_rows, page, token, 0)",
    ),
]
