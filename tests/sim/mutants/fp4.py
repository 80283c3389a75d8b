"""Planted bugs in the quantiser of FP4: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

TILE = "csrc/fp4/sm90_tile.h"
SIDE = "csrc/fp4/sm90_side.h"
SCAN = "csrc/fp4/sm90_scan.h"
QUANTIZE = "csrc/fp4/sm90_quantize.h"
HADAMARD = "csrc/fp4/sm90_hadamard.h"
ENCODE = "csrc/fp4/sm90_encode.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_fp4.cpp", *texts)


WAIT = "  sm90::grid_dependency_wait();\n  sm90::launch_dependents();\n"
MUTANTS = [
    mutant(
        "tile loaded while the launch before runs",
        "grid-dependency",
        SIDE,
        WAIT + "  const Corner",
        "  const Corner",
    ),
    mutant(
        "results of the tiles joined while they are found",
        "grid-dependency",
        SCAN,
        WAIT + "  auto& s = sm90::dynamic_smem<JoinSmem>",
        "  auto& s = sm90::dynamic_smem<JoinSmem>",
    ),
    mutant(
        "tile used before it is there",
        "smem-race",
        SIDE,
        "  load_signs(p.signs, p.hadamard, s);\n  sm90::block_sync();",
        "  load_signs(p.signs, p.hadamard, s);",
    ),
    mutant(
        "maxima of a side over those of the side before",
        "smem-race",
        SCAN,
        "  sm90::block_sync();  // the side before may still be read\n",
        "",
    ),
    mutant(
        "maxima of warps read before they are written",
        "smem-race",
        SCAN,
        "  sm90::block_sync();\n  if (sm90::thread_index() > 0) return;",
        "  if (sm90::thread_index() > 0) return;",
    ),
    mutant(
        "joined before all warps have read",
        "smem-race",
        SCAN,
        "  sm90::block_sync();\n  if (warp > 0) return;",
        "  if (warp > 0) return;",
    ),
    mutant(
        "rotated values stored by others before they are there",
        "smem-race",
        HADAMARD,
        "  sm90::block_sync();\n  switch",
        "  switch",
    ),
    mutant(
        "rows beyond the last one read",
        "global-bounds",
        TILE,
        "column < columns ? rows - row : 0;",
        "column < columns ? kTile : 0;",
    ),
    mutant(
        "single values beyond the matrix read",
        "global-bounds",
        TILE,
        "const bool inside = row < rows && column < columns;",
        "const bool inside = column < columns;",
    ),
    mutant(
        "packed rows beyond the last one read",
        "global-bounds",
        TILE,
        "? from.rows - corner.row - row : 0;",
        "? kTile : 0;",
    ),
    mutant(
        "rows beyond the last one written",
        "global-bounds",
        SIDE,
        "return row < p.rows() && column",
        "return column",
    ),
    mutant(
        "columns beyond the row written",
        "global-race",
        SIDE,
        "row < p.rows() && column < p.columns()",
        "row < p.rows()",
    ),
    mutant(
        "scales of rows beyond the last one",
        "global-bounds",
        SCAN,
        "    if (row >= p.rows()) return;\n",
        "",
    ),
    mutant(
        "all tiles of a row in one place",
        "global-race",
        SCAN,
        "place.column / kTile * p.rows() + place.row",
        "place.row",
    ),
    mutant(
        "gap between groups of rows forgotten in the size",
        "smem-bounds",
        TILE,
        "values[kTile * kPitch + (kUnits - 1) * kGap]",
        "values[kTile * kPitch]",
    ),
    mutant(
        "padding of swizzled scales left alone",
        "numerics",
        QUANTIZE,
        "} else if (at < padded_scale_columns(count)) {",
        "} else if (inside) {",
    ),
    mutant(
        "padding of swizzled scales too wide",
        "global-race",
        QUANTIZE,
        "} else if (at < padded_scale_columns(count)) {",
        "} else {",
    ),
    mutant(
        "signs of the first unit for all",
        "numerics",
        SIDE,
        "flip_signs(s.signs[unit.block], x)",
        "flip_signs(s.signs[0], x)",
    ),
    mutant(
        "signs in the opposite order",
        "numerics",
        TILE,
        "signs << (kUnit - 1 - i)",
        "signs << i",
    ),
    mutant(
        "lower lanes subtract",
        "numerics",
        TILE,
        "lanes ? -1.0f : 1.0f",
        "lanes ? 1.0f : -1.0f",
    ),
    mutant(
        "last stage between the wrong lanes",
        "numerics",
        TILE,
        "hadamard_stage_across(2 * kLinesAtOnce, x)",
        "hadamard_stage_across(kLinesAtOnce, x)",
    ),
    mutant(
        "columns read as rows",
        "smem-uninitialised",
        TILE,
        "x[i] = from[i * TileSmem::kPitch]",
        "x[i] = from[i]",
    ),
    mutant(
        "window one binade too wide",
        "numerics",
        QUANTIZE,
        "? top - (p.window - 1) : 0",
        "? top - p.window : 0",
    ),
    mutant(
        "carrier's codes looked up from the wrong half",
        "numerics",
        QUANTIZE,
        "carrier_bytes(table, a >> 16)",
        "carrier_bytes(table, a)",
    ),
    mutant(
        "sixth step of a code left out",
        "numerics",
        ENCODE,
        "4194304.0f + 3.0f",
        "4194304.0f + 2.0f",
    ),
    mutant(
        "codes of even elements for the odd ones",
        "numerics",
        ENCODE,
        "gather(magnitude + 1, kLowest)",
        "gather(magnitude, kLowest)",
    ),
    mutant(
        "second block of nvfp4 in the place of the first",
        "numerics",
        QUANTIZE,
        "      place.column += kNvBlock;\n",
        "",
    ),
    mutant(
        "squares of half their lines",
        "numerics",
        QUANTIZE,
        "largest_of_lanes(largest.first, 1, kLinesAtOnce)",
        "largest_of_lanes(largest.first, 1, kLinesAtOnce / 2)",
    ),
    mutant(
        "random bits of the first eight elements for all",
        "numerics",
        QUANTIZE,
        "uint64_t(element) / 8 + w",
        "uint64_t(element) / 8",
    ),
    mutant(
        "random bits of the element for the scale",
        "numerics",
        QUANTIZE,
        "uint64_t(at) / kNvBlock",
        "uint64_t(at)",
    ),
]
