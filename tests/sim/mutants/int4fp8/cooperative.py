"""Bugs planted in the kernel for many tokens."""

from __future__ import annotations

from sim.mutants.int4fp8.planted import COOPERATIVE, COOPERATIVE_CONFIG, RING, mutant
from sim.planting import Mutant


def cooperative(name: str, caught_by: str, *texts: str) -> Mutant:
    return mutant(f"cooperative: {name}", caught_by, COOPERATIVE, *texts)


def shared_ring(name: str, caught_by: str, *texts: str) -> Mutant:
    return Mutant.of(f"cooperative: {name}", caught_by, RING, "sim_cooperative.cpp", *texts)


_STAGING = "    sm90::barrier_sync(1 + consumer, sm90::kWarpgroupThreads);"
_AWAIT = "    if (C::kPingPong && i != first_tile<C>()) await_turn<C>(consumer);\n"
_PASS = "    if (C::kPingPong && i + stride < tile_count(p, s)) pass_turn<C>(consumer);\n"
COOPERATIVE_MUTANTS = [
    cooperative(
        "first full wait missing", "smem-race-copy", "  s.ring.wait_full(at);\n  if", "  if"
    ),
    cooperative(
        "full wait one stage ahead missing", "smem-race-copy", "s.ring.wait_full(next);", ""
    ),
    cooperative("empty wait missing", "mbarrier", "s.ring.template wait_empty<C::kCtas>(at);", ""),
    cooperative("no barrier after the initialisation", "mbarrier", "sm90::block_sync();", ";"),
    mutant(
        "cooperative: one warpgroup releases for two",
        "smem-overwrite-wgmma",
        COOPERATIVE_CONFIG,
        "kConsumers * kCtas) * 4",
        "kCtas) * 4",
    ),
    cooperative("fence missing", "wgmma-fence", "  sm90::wgmma_fence();\n", ""),
    cooperative(
        "wgmma wait missing", "wgmma-register", "sm90::wgmma_wait<kPending>(products);", ""
    ),
    cooperative(
        "last products scaled in flight",
        "wgmma-register",
        "add_scaled<0>(m.scale",
        "add_scaled<1>(m.scale",
    ),
    cooperative(
        "products of the first half scaled in flight",
        "wgmma-register",
        "add_scaled<1>(m.scale, m.products[0], m.sum[slab][0])",
        "add_scaled<2>(m.scale, m.products[0], m.sum[slab][0])",
    ),
    cooperative("next slab decoded over this one", "wgmma-register", "m.a[slab + 1]", "m.a[slab]"),
    cooperative(
        "this slab decoded for the next",
        "numerics",
        "first_weight_tile + slab + 1]",
        "first_weight_tile + slab]",
    ),
    cooperative("first half of the tokens for both", "numerics", "x + kHalf", "x"),
    cooperative(
        "products of the slab before added to this one",
        "numerics",
        "m.sum[(i - 1) / C::kGroups][1]",
        "m.sum[slab][1]",
    ),
    cooperative(
        "staging read before all have written",
        "smem-race",
        f"sum[half][v];\n{_STAGING}\n",
        "sum[half][v];\n",
    ),
    cooperative(
        "staging overwritten before all have read",
        "smem-race",
        f"++half) {{\n{_STAGING}",
        "++half) {",
    ),
    cooperative(
        "row blocks beyond the last fetched", "global-bounds", "(w < more ? w : more)", "w"
    ),
    cooperative(
        "activations of the first token block for all",
        "numerics",
        "tensor_load_2d(share, p.x, column, token, full)",
        "tensor_load_2d(share, p.x, column, 0, full)",
    ),
]
PING_PONG_MUTANTS = [
    cooperative("no turns", "smem-race-copy", _AWAIT, "", _PASS, ""),
    cooperative("turn not passed", "deadlock", _PASS, ""),
    cooperative(
        "turn passed to itself",
        "deadlock",
        "kTurnBarrier + 1 - consumer",
        "kTurnBarrier + consumer",
    ),
    cooperative(
        "stages of the other warpgroup not skipped",
        "deadlock",
        "    at.skip((C::kTurns - 1) * p.k_tiles);\n",
        "",
    ),
    cooperative(
        "second warpgroup starts at stage 0", "deadlock", "  at.skip(turn * p.k_tiles);\n", ""
    ),
    cooperative(
        "both warpgroups take the first tile",
        "deadlock",
        "first_tile<C>() + turn * stride",
        "first_tile<C>()",
    ),
    shared_ring(
        "passes over the ring not counted when skipping",
        "deadlock",
        "    parity ^= stage / kStages & 1;\n",
        "",
    ),
]
PAIR_MUTANTS = [
    cooperative("multicast to the first CTA only", "deadlock", "(1 << C::kCtas) - 1", "1"),
    cooperative(
        "first half of the activations twice",
        "numerics",
        "first_token + rank * (C::kTokens / C::kCtas)",
        "first_token",
    ),
    cooperative(
        "both halves of the activations in one place",
        "smem-race-copy",
        "s.x[stage] + rank * (C::kStage.x / C::kCtas)",
        "s.x[stage]",
    ),
    cooperative(
        "rows of the first CTA for both",
        "global-race",
        "tile.row_tile * C::kCtas + rank",
        "tile.row_tile * C::kCtas",
    ),
    cooperative(
        "peer may not have initialised its barriers",
        "mbarrier",
        "sm90::cluster_sync();\n  const int group",
        "sm90::block_sync();\n  const int group",
    ),
    cooperative(
        "CTA exits while its peer arrives",
        "exit",
        "  if constexpr (C::kCtas > 1) sm90::cluster_sync();",
        "  ",
    ),
    mutant(
        "cooperative: releases of the peer not awaited",
        "smem-overwrite-wgmma",
        COOPERATIVE_CONFIG,
        "kConsumers * kCtas) * 4",
        "kConsumers) * 4",
    ),
    shared_ring("remote arrival missing", "deadlock", "lane_index() < kCtas", "lane_index() < 1"),
    shared_ring(
        "remote arrivals acquired in the CTA only",
        "smem-race-copy",
        "mbarrier_wait_cluster(empty",
        "mbarrier_wait(empty",
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
    cooperative(
        "sums of x of the first k tile for all",
        "numerics",
        "first_token, k * C::kGroups, full",
        "first_token, 0, full",
    ),
    cooperative(
        "sums of x of the first token block for all",
        "numerics",
        "p.x_sums, first_token,",
        "p.x_sums, 0,",
    ),
    cooperative(
        "sums of x of the first group for all", "numerics", "&x_sums[group][", "&x_sums[0]["
    ),
    cooperative(
        "sums of x of two tokens swapped", "numerics", "i % 2 ? s.y : s.x", "i % 2 ? s.x : s.y"
    ),
    cooperative(
        "sums of x eight tokens early",
        "numerics",
        "first_column + v / 4 * 8",
        "first_column + (v / 4 ^ 1) * 8",
    ),
    cooperative(
        "sums of x scaled by the rows of the other eight",
        "numerics",
        "factor[slab][i / 2]",
        "factor[slab][1 - i / 2]",
    ),
    cooperative(
        "zero points of the first slab for both",
        "numerics",
        "const RowPair<C> rows(tiles + slab * C::kTileBytes, group)",
        "const RowPair<C> rows(tiles, group)",
    ),
    cooperative(
        "zero points taken off in the next stage's pass",
        "smem-race-copy",
        "(tiles, s.x_sums[at.stage], m.sum)",
        "(tiles, s.x_sums[(at.stage + 1) % C::kStages], m.sum)",
    ),
]
