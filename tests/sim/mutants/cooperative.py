"""Bugs planted in the kernel for many tokens."""

from __future__ import annotations

from sim.mutants.planted import COOPERATIVE, COOPERATIVE_CONFIG, mutant

COOPERATIVE_MUTANTS = [
    mutant(
        "cooperative: full wait missing", "smem-race-copy", COOPERATIVE, "s.ring.wait_full(at);", ""
    ),
    mutant(
        "cooperative: empty wait missing", "mbarrier", COOPERATIVE, "s.ring.wait_empty(at);", ""
    ),
    mutant(
        "cooperative: no barrier after the initialisation",
        "mbarrier",
        COOPERATIVE,
        "  sm90::block_sync();\n",
        "",
    ),
    mutant(
        "cooperative: one warpgroup releases for two",
        "smem-overwrite-wgmma",
        COOPERATIVE,
        "C::kConsumers * 4",
        "4",
    ),
    mutant(
        "cooperative: fence missing", "wgmma-fence", COOPERATIVE, "    sm90::wgmma_fence();\n", ""
    ),
    mutant(
        "cooperative: wgmma wait missing",
        "wgmma-register",
        COOPERATIVE,
        "sm90::wgmma_wait<0>(products);",
        "",
    ),
    mutant(
        "staging read before all have written",
        "smem-race",
        COOPERATIVE,
        "    }\n    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);\n",
        "    }\n",
    ),
    mutant(
        "staging overwritten before all have read",
        "smem-race",
        COOPERATIVE,
        "++pass) {\n    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);",
        "++pass) {",
    ),
    mutant(
        "row blocks beyond the last fetched",
        "global-bounds",
        COOPERATIVE,
        "(w < more ? w : more)",
        "w",
    ),
    mutant(
        "activations of the first token block for all",
        "numerics",
        COOPERATIVE,
        "k * int4::kTileColumns, tile.first_token, full",
        "k * int4::kTileColumns, 0, full",
    ),
]

ZERO_MUTANTS = [
    mutant(
        "sums of x not in the expected bytes",
        "deadlock",
        COOPERATIVE_CONFIG,
        "return weights + x + x_sums;",
        "return weights + x;",
    ),
    mutant(
        "sums of x of the first k tile for all",
        "numerics",
        COOPERATIVE,
        "tile.first_token, k * C::kGroups, full",
        "tile.first_token, 0, full",
    ),
    mutant(
        "sums of x of the first token block for all",
        "numerics",
        COOPERATIVE,
        "p.x_sums, tile.first_token,",
        "p.x_sums, 0,",
    ),
    mutant(
        "sums of x of the first group for all",
        "numerics",
        COOPERATIVE,
        "&x_sums[group][",
        "&x_sums[0][",
    ),
    mutant(
        "sums of x of two tokens swapped",
        "numerics",
        COOPERATIVE,
        "i % 2 ? s.y : s.x",
        "i % 2 ? s.x : s.y",
    ),
    mutant(
        "sums of x eight tokens early",
        "numerics",
        COOPERATIVE,
        "first_column + v / 4 * 8",
        "first_column + (v / 4 ^ 1) * 8",
    ),
    mutant(
        "sums of x scaled by the rows of the other eight",
        "numerics",
        COOPERATIVE,
        "factor[slab][i / 2]",
        "factor[slab][1 - i / 2]",
    ),
    mutant(
        "zero points of the first slab for both",
        "numerics",
        COOPERATIVE,
        "const RowPair<C> rows(tiles + slab * C::kTileBytes, group)",
        "const RowPair<C> rows(tiles, group)",
    ),
    mutant(
        "zero points taken off in the next stage's pass",
        "smem-race-copy",
        COOPERATIVE,
        "(tiles, s.x_sums[at.stage], sum)",
        "(tiles, s.x_sums[(at.stage + 1) % C::kStages], sum)",
    ),
]
