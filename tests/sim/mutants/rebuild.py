"""Planted bugs in the kernels of the rebuild family: edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

PRNG = "csrc/rebuild/sm90_prng.h"
REBUILD = "csrc/rebuild/sm90_rebuild.h"
REBUILD_FUSED = "csrc/rebuild/sm90_rebuild_fused.h"
REBUILD_TENSOR = "csrc/rebuild/sm90_rebuild_tensor.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_rebuild.cpp", *texts)


_PRNG = [
    mutant("project: sums of warps read before they are there", "smem-race", PRNG,
           "    sm90::block_sync();\n    if (thread <", "    if (thread <"),
    mutant("project: sums of warps overwritten while read", "smem-race", PRNG,
           "    sm90::block_sync();  // before the next bases' sums\n", ""),
    mutant("project: bases beyond the last", "global-bounds", PRNG,
           "if (thread < kProjectBases && first + thread < p.count)",
           "if (thread < kProjectBases)"),
    mutant("project: a warp left out", "numerics", PRNG,
           "warp < kProjectWarps; ++warp", "warp < kProjectWarps - 1; ++warp"),
    mutant("project: lanes left out", "numerics", PRNG,
           "mask = sm90::kWarpThreads / 2; mask > 0", "mask = sm90::kWarpThreads / 2; mask > 1"),
    mutant("project: signs of the first run for all", "numerics", PRNG,
           "d.word[i] >> e, j", "d.word[i], j"),
    mutant("project: parts repeat each other's bases", "global-race", PRNG,
           "first = part * kProjectBases; first", "first = 0 * part; first"),
    mutant("project: elements beyond the last read", "global-bounds", PRNG,
           "sm90::load_values(p.values, p.value_type, at, p.elements - at, values);",
           "sm90::load_values(p.values, p.value_type, at, kRun, values);"),
    mutant("expand: bases beyond the last read", "global-bounds", PRNG,
           "first + i < p.count ? coef[first + i] : 0.0f", "coef[first + i]"),
    mutant("expand: elements beyond the last stored", "global-bounds", PRNG,
           "if (block * kElements + j < p.elements)\n", "if (j < kElements)\n"),
    mutant("expand: the same basis again", "numerics", PRNG,
           "basis_values<kDistribution>(p, uint32_t(i), uint64_t(block), values);",
           "basis_values<kDistribution>(p, 0u, uint64_t(block), values);"),
    mutant("expand: signs of one basis for four", "numerics", PRNG,
           "sign_value(d.word[i], j, c)", "sign_value(d.word[0], j, c)"),
    mutant("expand: halves of normal pairs swapped", "numerics", PRNG,
           "values[j] = low.value[j];", "values[j] = high.value[j];"),
    mutant("expand: CTAs overlap", "global-race", PRNG,
           "int64_t(sm90::block_index_x()) * kPrngThreads + sm90::thread_index();\n  float sums",
           "int64_t(sm90::block_index_x()) * 64 + sm90::thread_index();\n  float sums"),
]  # fmt: skip
_REBUILD = [
    mutant("rebuild: factors overwritten while read", "smem-race", REBUILD_FUSED,
           "      sm90::block_sync();  // the last step's reads\n", ""),
    mutant("rebuild: factors read before all are there", "smem-race", REBUILD_FUSED,
           "      sm90::block_sync();\n      WLIB_UNROLL", "      WLIB_UNROLL"),
    mutant("rebuild: rows of a factor beyond its last", "global-bounds", REBUILD,
           "if (row >= rows || column >= columns) return 0.0f;",
           "if (column >= columns) return 0.0f;"),
    mutant("rebuild: ranks beyond the last", "global-bounds", REBUILD,
           "if (row >= rows || column >= columns) return 0.0f;", "if (row >= rows) return 0.0f;"),
    mutant("rebuild: rows beyond the last stored", "global-bounds", REBUILD,
           "if (row + below >= view.rows || column >= view.columns) continue;",
           "if (column >= view.columns) continue;"),
    mutant("rebuild: base of rows beyond the last", "global-bounds", REBUILD,
           "l.w0 && row + below < view.rows && column < view.columns",
           "l.w0 && column < view.columns"),
    mutant("rebuild: halves of a run of columns swapped", "numerics", REBUILD_FUSED,
           "c % kRun / 4 * (kTileColumns / 2)", "(1 - c % kRun / 4) * (kTileColumns / 2)"),
    mutant("rebuild: layer before the tile's own", "global-bounds", REBUILD,
           "first_tile <= tile ? low", "first_tile < tile ? low"),
    mutant("rebuild: tiles skipped", "numerics", REBUILD,
           "index < end; ++index", "index < end; index += 2"),
    mutant("rebuild: shares of CTAs overlap", "global-race", REBUILD,
           "end = first_tile(p.tiles, cta + 1);", "end = p.tiles;"),
    mutant("rebuild: hadamard adds", "numerics", REBUILD_FUSED,
           "sums[r][i] *= second[r][i]", "sums[r][i] += second[r][i]"),
    mutant("rebuild: kron's factors by the wrong block", "numerics", REBUILD_FUSED,
           "(column + i) / l.rank2, inner = (column + i) % l.rank2",
           "(column + i) % l.rank2, inner = (column + i) / l.rank2"),
    mutant("rebuild: first block for all rows of blocks", "numerics", REBUILD_FUSED,
           "int64_t(tile.batch) * l.rank1 * l.rank1", "int64_t(tile.batch) * 0 * l.rank1"),
    mutant("rebuild: scale left out", "numerics", REBUILD,
           "fmaf(scale, sums[r][i], w)", "fmaf(1.0f, sums[r][i], w) + 0 * scale"),
]  # fmt: skip
_TENSOR = [
    mutant("rebuild: split factors overwritten while read", "smem-race", REBUILD_TENSOR,
           "      sm90::block_sync();  // the last step's reads\n", ""),
    mutant("rebuild: split factors read before all are there", "smem-race", REBUILD_TENSOR,
           "      sm90::block_sync();\n      WLIB_UNROLL", "      WLIB_UNROLL"),
    mutant("rebuild: low parts of the first factor left out", "numerics", REBUILD_TENSOR,
           "load_a(s, 1, k, a);", "load_a(s, 0, k, a);"),
    mutant("rebuild: low parts of the second factor left out", "numerics", REBUILD_TENSOR,
           "load_b(s, 1, k, pair, low);", "load_b(s, 0, k, pair, low);"),
    mutant("rebuild: runs of rows beyond the last", "global-bounds", REBUILD_TENSOR,
           "r < f.rows && first < f.columns", "first < f.columns"),
    mutant("rebuild: runs of columns beyond the last", "global-bounds", REBUILD_TENSOR,
           "r < f.rows && first < f.columns", "r < f.rows"),
    mutant("rebuild: odd rows moved in runs", "misaligned", REBUILD_TENSOR,
           "f.row_stride % kRun == 0 && ", ""),
    mutant("rebuild: every other column moved in runs", "numerics", REBUILD_TENSOR,
           "return f.column_stride == 1 && ", "return "),
    mutant("rebuild: ranks of a quarter in the place of another's", "numerics", REBUILD_TENSOR,
           "[k / 8 + lane / 16]", "[k / 8 + 1 - lane / 16]"),
    mutant("rebuild: second half of an instruction's ranks left out", "numerics", REBUILD_TENSOR,
           "s.b[part][k + lane % 16]", "s.b[part][k + lane % 8]"),
    mutant("rebuild: later ranks of a step left out", "numerics", REBUILD_TENSOR,
           "if (rank + k >= a.columns) break;", "if (k > 0) break;"),
    mutant("rebuild: pairs of a run in reverse order", "numerics", REBUILD_TENSOR,
           "b_pair(run, j)] = pairs[j]", "b_pair(run, 3 - j)] = pairs[j]"),
    mutant("rebuild: rows of a warp's upper half for both", "numerics", REBUILD_TENSOR,
           "warp_row() + m * 16 + lane % 16", "warp_row() + lane % 16"),
    mutant("rebuild: first product in one place for all", "smem-race", REBUILD_TENSOR,
           "s.first[i][sm90::thread_index()] = at", "s.first[i][0] = at"),
    mutant("rebuild: second product on top of the first", "numerics", REBUILD_TENSOR,
           "at(products, i) = 0;", ""),
]  # fmt: skip
MUTANTS = [*_PRNG, *_REBUILD, *_TENSOR]
