"""Planted bugs in the kernels on sparse matrices: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

TILE = "csrc/atoms/sm90_token_tile.h"
MATMUL = "csrc/atoms/sm90_sparse_matmul.h"
TRANSPOSE = "csrc/atoms/sm90_sparse_transpose.h"
SAMPLE = "csrc/atoms/sm90_sparse_sample.h"
SYNC = "sm90::block_sync();"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_sparse.cpp", *texts)


_TILE_MUTANTS = [
    mutant(
        "tokens beyond the last loaded", "global-bounds", TILE, "first + t < rows.tokens", "true"
    ),
    mutant(
        "columns beyond the last loaded",
        "global-bounds",
        TILE,
        "c < count ? load_bits",
        "true ? load_bits",
    ),
    mutant(
        "pieces without whole columns loaded at once",
        "global-bounds",
        TILE,
        "aligned && count >= kPieceColumns",
        "aligned && count > 0",
    ),
    mutant("tokens of a word swapped", "numerics", TILE, "token[2 * w + 1]", "token[2 * w]"),
    mutant("chunks not apart", "smem-race", TILE, "where(at + c) ^ lane", "where(at + c) + lane"),
]
_MATMUL_MUTANTS = [
    mutant(
        "step stored before the last one is read",
        "smem-race",
        MATMUL,
        f"{SYNC}  // the last step's reads",
        "",
    ),
    mutant(
        "step read before it is stored",
        "smem-race",
        MATMUL,
        f"step);\n      {SYNC}\n",
        "step);\n",
    ),
    mutant(
        "starts of rows without entries missing",
        "smem-uninitialised",
        MATMUL,
        "int r = index ? row_of(before[i]) + 1 : 0;",
        "int r = row;",
    ),
    mutant(
        "starts after the last entry missing",
        "smem-uninitialised",
        MATMUL,
        "r <= kSparseTile; ++r) s.starts[side][r] = step.count;",
        "r < row; ++r) s.starts[side][r] = step.count;",
    ),
    mutant(
        "starts of a side without entries missing",
        "smem-uninitialised",
        MATMUL,
        "if (step.count == 0 && own <= kSparseTile) s.starts[side][own] = 0;",
        "",
    ),
    mutant(
        "entries of the upper side for both",
        "numerics",
        MATMUL,
        "= s.entries[side][at]",
        "= s.entries[0][at]",
    ),
    mutant(
        "tiles below the matrix asked for",
        "global-bounds",
        MATMUL,
        "if (row_tile + side >= rows) continue;",
        "",
    ),
    mutant(
        "tiles of the transpose numbered as the matrix's",
        "numerics",
        MATMUL,
        "return p.transposed ? int64_t(column_tile)",
        "return false ? int64_t(column_tile)",
    ),
    mutant("every run of a tile its first", "numerics", MATMUL, "offset[0] + first", "offset[0]"),
    mutant(
        "activations of the first tile column fetched ahead",
        "numerics",
        MATMUL,
        "load(x, token, step.tile * kSparseTile, 0, piece)",
        "load(x, token, 0, 0, piece)",
    ),
    mutant(
        "tokens beyond the last stored", "global-bounds", MATMUL, "token + t >= p.tokens ||", ""
    ),
    mutant("rows beyond the last stored", "global-bounds", MATMUL, " || count <= 0", ""),
    mutant(
        "bias of the tile's first rows", "numerics", MATMUL, "kType, row + first,", "kType, first,"
    ),
]
_TRANSPOSE_MUTANTS = [
    mutant(
        "numbers written before the table is clear",
        "smem-race",
        TRANSPOSE,
        f"= 0;\n    {SYNC}",
        "= 0;",
    ),
    mutant(
        "columns counted before the table is full",
        "smem-race",
        TRANSPOSE,
        f"{SYNC}\n    int own",
        "int own",
    ),
    mutant(
        "counts read before all are there",
        "smem-uninitialised",
        TRANSPOSE,
        f"= own;\n    {SYNC}",
        "= own;",
    ),
    mutant("next value's number", "numerics", TRANSPOSE, "number - 1", "number % 2"),
    mutant(
        "place of the next column", "global-race", TRANSPOSE, "before < column", "before <= column"
    ),
    mutant(
        "positions of the matrix",
        "smem-race",
        TRANSPOSE,
        "int16_t(column * kSparseTile + row)",
        "int16_t(row * kSparseTile + column)",
    ),
]
_SAMPLE_MUTANTS = [
    mutant(
        "places overwritten before all have read",
        "smem-race",
        SAMPLE,
        f"{SYNC}  // the last pass's reads",
        "",
    ),
    mutant(
        "tokens overwritten before all have read",
        "smem-race",
        SAMPLE,
        f"{SYNC}  // the last tokens' reads",
        "",
    ),
    mutant(
        "tokens read before they are stored",
        "smem-race",
        SAMPLE,
        f"column);\n    {SYNC}",
        "column);",
    ),
    mutant("places of dy for x", "numerics", SAMPLE, "word[i] & 0xffff", "word[i] >> 16"),
    mutant("lanes beyond the warp's share store", "global-race", SAMPLE, "lane >= share || ", ""),
    mutant("values beyond the last stored", "global-bounds", SAMPLE, " || own >= count", ""),
    mutant(
        "tokens of later splits summed, too",
        "numerics",
        SAMPLE,
        "last < p.tokens ? last : p.tokens",
        "p.tokens",
    ),
    mutant(
        "splits in one place", "global-race", SAMPLE, "[split * p.matrix.count + begin", "[begin"
    ),
    mutant(
        "a split left out",
        "numerics",
        SAMPLE,
        "split = 1; split < p.splits()",
        "split = 2; split < p.splits()",
    ),
    mutant(
        "halves of the lanes swapped once",
        "numerics",
        SAMPLE,
        "upper ? high : low",
        "upper ? low : high",
    ),
]
MUTANTS = [*_TILE_MUTANTS, *_MATMUL_MUTANTS, *_TRANSPOSE_MUTANTS, *_SAMPLE_MUTANTS]
