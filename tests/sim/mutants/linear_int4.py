"""Planted bugs in how the kernel of linear layers over atoms takes INT4 atoms."""

from __future__ import annotations

from sim.mutants.linear import mutant
from sim.planting import Mutant

INT4 = "csrc/atoms/sm90_linear_int4.h"


def in_int4(name: str, caught_by: str, *texts: str) -> Mutant:
    return mutant(name, caught_by, *texts, file=INT4)


_COPIES = [
    mutant("tiles of the first chunk", "numerics", "tiles + int64_t(chunk) *", "tiles + 0 *"),
    mutant("scales of rows from a tile", "numerics", "int64_t(p.plan.chunks) * layout", "layout"),
    mutant("tiles of the first atom", "numerics", "int64_t(atom) * blocks", "int64_t(0)"),
    mutant(
        "tiles of the first consumer", "numerics", "kConsumerRows + consumer;", "kConsumerRows;"
    ),
    mutant(
        "tiles beyond the last", "global-bounds", "wanted < blocks ? wanted : ", "true ? wanted : "
    ),
    mutant(
        "one consumer's tile for all", "numerics", "stage + consumer * kPackedBytes, x", "stage, x"
    ),
]
_ARRANGING = [
    in_int4(
        "not waited for", "smem-race", "  sm90::barrier_sync(barrier, C::kConsumerThreads);\n", ""
    ),
    in_int4("not shown to the tensor cores", "proxy-fence", "  sm90::fence_proxy_async();\n", ""),
    in_int4("swizzle forgotten", "numerics", " * 2 ^ row % 8;", " * 2;"),
    in_int4("pairs in their own order", "numerics", "{a.x, a.z, b.x, b.z}", "{a.x, a.y, b.x, b.z}"),
    in_int4("first tile alone", "numerics", "i < C::kTiles * C::kTokens", "i < C::kTokens"),
    in_int4("base's swizzle forgotten", "numerics", "t % 4 * 8 ^ row % 8 * 16", "t % 4 * 8"),
]
_PRODUCTS = [
    in_int4("signs of the first row", "numerics", "signs = word << 7", "signs = word"),
    in_int4("factor of the first row", "numerics", "Units::kSecond);", "Units::kFirst);"),
    in_int4("codes of the first half", "numerics", "half * sm90::kWarpgroupThreads", "0"),
    in_int4("activations of the first half", "numerics", "x + half * C::kTokenBytes", "x"),
    in_int4("a group's first half lost", "numerics", "step % kGroupSteps != 0);", "false);"),
    in_int4(
        "products read in flight", "wgmma-register", "      sm90::wgmma_wait<0>(products);\n", ""
    ),
    in_int4("scales of the first group", "numerics", "rows(tile, group)", "rows(tile, 0)"),
    in_int4("scale of the first row", "numerics", "channel[row + 8]", "channel[row]"),
    in_int4("other groups lost", "numerics", "group == 0 ? s", "true ? s"),
]
MUTANTS = [*_COPIES, *_ARRANGING, *_PRODUCTS]
