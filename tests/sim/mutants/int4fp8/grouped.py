"""Planted bugs in what looks up the tiles of experts, and in the order with the launch before."""

from __future__ import annotations

from sim.mutants.int4fp8.planted import COOPERATIVE, GROUP_SUMS, KERNEL, QUANTIZER, STORE, mutant

TILES = "csrc/int4fp8/sm90_tiles.h"
_WAIT = "sm90::grid_dependency_wait();"
_COUNT = "  if (sm90::warp_index() == 1 && is_grouped(p)) {\n    " + _WAIT + "\n"
_COUNT += "    count_blocks(p, C::kTokens, s.experts);\n  }\n"

_TILE_MUTANTS = [
    mutant(
        "experts: tokens beyond the end stored",
        "global-race",
        TILES,
        "      end_token = table.begin[expert + 1];\n",
        "",
    ),
    mutant(
        "experts: weight of the first for all",
        "numerics",
        TILES,
        "(int64_t(expert) * p.row_blocks + block)",
        "int64_t(block)",
    ),
    mutant(
        "experts: bias of the first for all", "numerics", STORE, "int64_t(expert) * p.n + n", "n"
    ),
    mutant(
        "experts: blocks of later lanes counted",
        "numerics",
        TILES,
        "if (lane >= distance) blocks",
        "blocks",
    ),
    mutant("experts: counted anew after 32", "numerics", TILES, "    blocks += total;", ""),
    mutant(
        "experts: tokens counted from the first of all",
        "global-race",
        TILES,
        "      first_token = table.begin[expert];\n",
        "",
    ),
    mutant(
        "experts: end of the last not in the table",
        "smem-uninitialised",
        TILES,
        "      if (expert + 1 == p.experts) table.begin[expert + 1] = end;\n",
        "",
    ),
    mutant(
        "experts: offsets outside of x followed",
        "global-bounds",
        TILES,
        "offset < 0 ? 0 : offset > p.m ? p.m : int(offset)",
        "int(offset)",
    ),
    mutant(
        "experts: wide offsets read as narrow ones",
        "global-race",
        TILES,
        "p.wide_offsets ? ",
        "false ? ",
    ),
    mutant(
        "experts: table read before it is made",
        "smem-uninitialised",
        KERNEL,
        _COUNT,
        "",
        "  const int group = sm90::warpgroup_index(), rank",
        _COUNT + "  const int group = sm90::warpgroup_index(), rank",
    ),
    mutant(
        "cooperative experts: weight of the first for all",
        "numerics",
        COOPERATIVE,
        "packed_rows(p, kLayout, tile.expert, first_block)",
        "packed_rows(p, kLayout, 0, first_block)",
    ),
    mutant(
        "cooperative experts: channel scales of the first for all",
        "numerics",
        COOPERATIVE,
        "packed_rows(p, kLayout, tile.expert, block)",
        "packed_rows(p, kLayout, 0, block)",
    ),
    mutant(
        "cooperative experts: tokens beyond the end stored",
        "global-race",
        COOPERATIVE,
        "m >= tile.end_token",
        "m >= p.m",
    ),
]
_DEPENDENCY_MUTANTS = [
    mutant(
        "producer does not wait for the launch before",
        "grid-dependency",
        KERNEL,
        "  " + _WAIT + "\n  sm90::launch",
        "  sm90::launch",
    ),
    mutant(
        "consumers do not wait for the launch before",
        "grid-dependency",
        KERNEL,
        "  " + _WAIT + "  // for scales",
        "  // for scales",
    ),
    mutant(
        "the next launch started before the wait",
        "grid-dependency",
        KERNEL,
        "  " + _WAIT + "\n  sm90::launch_dependents();\n",
        "  sm90::launch_dependents();\n  " + _WAIT + "\n",
    ),
    mutant(
        "offsets read before the wait",
        "grid-dependency",
        KERNEL,
        "    " + _WAIT + "\n    count",
        "    count",
    ),
    mutant(
        "weight fetched early though the launch before may write it",
        "grid-dependency",
        KERNEL,
        "p.prefetch_weight ? prefetch",
        "true ? prefetch",
    ),
    mutant(
        "weight fetched early and again",
        "mbarrier",
        KERNEL,
        "if (i != first_item(p) || k + g >= fetched)",
        "if (true)",
    ),
    mutant(
        "activations not expected behind weights fetched early",
        "deadlock",
        KERNEL,
        "C::kTileBytes + C::kActivationBytes)",
        "C::kTileBytes)",
    ),
    mutant(
        "the first tiles fetched early for all warpgroups",
        "numerics",
        KERNEL,
        "tiles + int64_t(k) * C::kTileBytes",
        "tiles + int64_t(k - g) * C::kTileBytes",
    ),
    mutant(
        "quantiser does not wait for the launch before",
        "grid-dependency",
        QUANTIZER,
        "  " + _WAIT + "\n",
        "",
    ),
    mutant(
        "group sums: no wait for the launch before",
        "grid-dependency",
        GROUP_SUMS,
        "  " + _WAIT + "\n",
        "",
    ),
]
MUTANTS = [*_TILE_MUTANTS, *_DEPENDENCY_MUTANTS]
