"""Planted bugs in the kernels of linear layers over atoms: edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

KERNEL = "csrc/atoms/sm90_linear.h"
TILES = "csrc/atoms/sm90_linear_tiles.h"
SYNC = "sm90::barrier_sync(kConsumerBarrier, C::kConsumerThreads);"


def mutant(name: str, caught_by: str, *texts: str, file: str = KERNEL) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_linear.cpp", *texts)


def in_tiles(name: str, caught_by: str, *texts: str) -> Mutant:
    return mutant(name, caught_by, *texts, file=TILES)


_RINGS = [
    mutant("atoms overwritten", "mbarrier", "s.atom_ring.wait_empty(at);", ""),
    mutant("activations overwritten", "mbarrier", "s.token_ring.wait_empty(token_at);", ""),
    mutant("atoms not waited for", "smem-race-copy", "s.atom_ring.wait_full(at);", ""),
    mutant("activations not waited for", "smem-race-copy", "s.token_ring.wait_full(token_at);", ""),
    mutant(
        "atoms released before they are multiplied",
        "smem-overwrite-wgmma",
        "        s.atom_ring.release(at);\n",
        "",
        "        s.atom_ring.wait_full(at);\n",
        "        s.atom_ring.wait_full(at);\n        s.atom_ring.release(at);\n",
    ),
    mutant(
        "activations released after the first atom",
        "smem-overwrite-wgmma",
        "      s.token_ring.release(token_at);\n",
        "",
        "      s.token_ring.wait_full(token_at);\n",
        "      s.token_ring.wait_full(token_at);\n      s.token_ring.release(token_at);\n",
    ),
    mutant(
        "one consumer releases for both",
        "smem-overwrite-wgmma",
        "s.atom_ring.init(/*readers=*/C::kConsumerThreads",
        "s.atom_ring.init(/*readers=*/sm90::kWarpgroupThreads",
    ),
    mutant("barriers used before their initialisation", "mbarrier", "  sm90::block_sync();\n", ""),
]
_PRODUCTS = [
    in_tiles(
        "fence missing",
        "wgmma-fence",
        "(tile), b = sm90::swizzled_tile_descriptor(x);\n  sm90::wgmma_fence();\n",
        "(tile), b = sm90::swizzled_tile_descriptor(x);\n",
    ),
    in_tiles("products read in flight", "wgmma-register", "  sm90::wgmma_wait<0>(products);\n", ""),
    in_tiles(
        "commit missing",
        "wgmma-register",
        "b + inside, step != 0);\n  }\n  sm90::wgmma_commit();\n",
        "b + inside, step != 0);\n  }\n",
    ),
    mutant(
        "rows of the first consumer", "numerics", " + consumer * kConsumerRows * kTileBytes", ""
    ),
    in_tiles("coefficient of the neighbour", "numerics", "c[v / 4 * 2 + v % 2]", "c[v / 4 * 2]"),
]
_ITEMS = [
    mutant("coefficients overwritten", "smem-race", f"{SYNC}  // the last item's reads", ""),
    mutant("coefficients read too early", "smem-race", f"  }}\n  {SYNC}\n}}", "  }\n}"),
    mutant("coefficients of absent tokens", "global-bounds", "if (token < p.tokens)\n", ""),
    mutant(
        "coefficients of other tokens", "numerics", "int64_t(token) * p.coef_stride", "int64_t(0)"
    ),
    mutant(
        "base without its coefficient",
        "global-bounds",
        "atom < p.num_atoms ? p.coef",
        "true ? p.coef",
    ),
    mutant("rows of the first atom", "numerics", "a * p.rows + item.first_row", "item.first_row"),
    mutant(
        "first columns of x",
        "numerics",
        "p.x, column + tile",
        "p.x, tile",
    ),
    mutant("first tokens", "numerics", "item.first_token, tokens_full", "0, tokens_full"),
    mutant("rows beyond the last stored", "global-race", "row >= p.rows || ", ""),
    mutant("tokens beyond the last stored", "global-bounds", " || token >= p.tokens", ""),
    mutant("parts in one place", "numerics", "int64_t(item.part) * p.tokens", "int64_t(0)"),
    mutant(
        "shares that overlap",
        "numerics",
        "int64_t(plan.chunks) * share / plan.shares",
        "int64_t(0)",
    ),
    mutant("a part left out", "numerics", "part = 1; part < p.parts", "part = 2; part < p.parts"),
    mutant("bias of another row", "numerics", "i % p.rows", "0"),
    mutant("outputs beyond the last", "global-bounds", "i < p.outputs", "i < p.outputs + 1"),
]
_FP8 = [
    in_tiles(
        "fence before fragments missing",
        "wgmma-fence",
        "t b = sm90::swizzled_tile_descriptor(x);\n  sm90::wgmma_fence();\n",
        "t b = sm90::swizzled_tile_descriptor(x);\n",
    ),
    in_tiles("swizzle of the codes forgotten", "numerics", "(column ^ row % 8 * 16)", "column"),
    in_tiles("rows of fragments swapped", "numerics", "(row + i % 2 * 8)", "(row + 8 - i % 2 * 8)"),
    in_tiles(
        "activations of the first tile", "numerics", "step / 4 * (C::kTokenBytes >> 4) + ", ""
    ),
    mutant("second tile of x the first", "numerics", "column + tile * kTileColumns", "column"),
    mutant(
        "activations of the base's first tile",
        "numerics",
        "x + (a - p.num_atoms) * C::kTokenBytes",
        "x",
    ),
]
MUTANTS = [*_RINGS, *_PRODUCTS, *_ITEMS, *_FP8]
