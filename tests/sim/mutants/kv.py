"""Planted bugs in the kernels of the INT4 cache: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

APPEND = "csrc/prefill/sm90_append.h"
QUERIES = "csrc/prefill/sm90_queries.h"
HEADS = "csrc/prefill/sm90_heads.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_kv.cpp", *texts)


MUTANTS = [
    mutant(
        "table of slots filled before it is cleared",
        "smem-race",
        APPEND,
        "  sm90::warp_sync();\n",
        "",
    ),
    mutant(
        "warps' tables joined before all are filled",
        "smem-race",
        APPEND,
        "s.earlier[warp] = earlier;\n  sm90::block_sync();",
        "s.earlier[warp] = earlier;",
    ),
    mutant(
        "tokens read before the tables are joined",
        "smem-race",
        APPEND,
        "  sm90::block_sync();\n  return owned;",
        "  return owned;",
    ),
    mutant(
        "values packed before all are quantised",
        "smem-race",
        APPEND,
        "    sm90::block_sync();\n    store_values",
        "    store_values",
    ),
    mutant(
        "values of the next head over those being packed",
        "smem-race",
        APPEND,
        "    sm90::block_sync();  // the next head, or block, uses the same memory\n",
        "",
    ),
    mutant(
        "every CTA with a token writes the block",
        "global-race",
        APPEND,
        "    if (token > 0 && block_of(p.slots[token - 1]) == block) continue;\n"
        "    if (find_tokens(p, s, block, token)) append_block<T>(l, s, block);",
        "    if (find_tokens(p, s, block, 0)) append_block<T>(l, s, block);",
    ),
    mutant(
        "owner does not look at earlier tokens",
        "global-race",
        APPEND,
        "if (found && at + sm90::lowest_bit(found) < first) earlier = true;",
        "",
    ),
    mutant(
        "first of two tokens with one slot wins",
        "numerics",
        APPEND,
        "last = token == kNoToken ? last : token;",
        "last = last == kNoToken ? token : last;",
    ),
    mutant(
        "last tokens of a launch left out",
        "numerics",
        APPEND,
        "(p.tokens + kAppendThreads - 1) / kAppendThreads",
        "p.tokens / kAppendThreads",
    ),
    mutant(
        "slots beyond the cache written",
        "global-bounds",
        APPEND,
        "if (block < 0 || block >= p.blocks) continue;",
        "if (block < 0) continue;",
    ),
    mutant(
        "stored values of other tokens lost",
        "numerics",
        APPEND,
        "if (mine != ~0u) {",
        "if (false) {",
    ),
    mutant(
        "stored values of other tokens kept in the wrong half",
        "numerics",
        APPEND,
        "owned_bytes(mine >> (16 + 4 * w))",
        "owned_bytes(mine >> (4 * w))",
    ),
    mutant(
        "values in the order of their tokens",
        "numerics",
        APPEND,
        "s.values[int4kv::value_slot(slot)][channel]",
        "s.values[slot][channel]",
    ),
    mutant(
        "keys packed as first and second channels in turn",
        "numerics",
        APPEND,
        "return first | rotate_left4(second);",
        "return second | rotate_left4(first);",
    ),
    mutant("code -8", "numerics", APPEND, "fmaxf(rounded, -kLargest)", "rounded - 0.5f"),
    mutant(
        "scale of the keys for the values",
        "numerics",
        APPEND,
        "slot] = v_scale;",
        "slot] = k_scale;",
    ),
    mutant(
        "keys smoothed before their mean is taken off",
        "numerics",
        APPEND,
        "v[0] -= mean.x, ",
        "v[0] -= mean.y, ",
    ),
    mutant(
        "lanes left out of a maximum",
        "numerics",
        HEADS,
        "kThreads / 2; lanes > 0;",
        "kThreads / 2; lanes > 1;",
    ),
    mutant(
        "rows beyond the last one written",
        "global-bounds",
        QUERIES,
        "  if (!exists) return;\n",
        "",
    ),
    mutant("rotated the other way", "numerics", QUERIES, "rotate(a, -b,", "rotate(a, b,"),
    mutant(
        "angles of the first token for all",
        "numerics",
        QUERIES,
        "token * kHalf + channel",
        "channel",
    ),
    mutant(
        "factors of the query's head instead of its keys'",
        "global-bounds",
        QUERIES,
        "(head / (p.heads / p.kv_heads))",
        "head",
    ),
]
