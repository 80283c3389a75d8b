"""Planted bugs in the kernels on sparse matrices: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

TILE = "csrc/sparse_lowrank/sm90_token_tile.h"
MATMUL = "csrc/sparse_lowrank/sm90_sparse_matmul.h"
TRANSPOSE = "csrc/sparse_lowrank/sm90_sparse_transpose.h"
SAMPLE = "csrc/sparse_lowrank/sm90_sparse_sample.h"
BOXES = "csrc/sparse_lowrank/sm90_token_boxes.h"
MATMUL_MMA = "csrc/sparse_lowrank/sm90_sparse_matmul_mma.h"
SAMPLE_MMA = "csrc/sparse_lowrank/sm90_sparse_sample_mma.h"
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
        "c < count ? from[c]",
        "true ? from[c]",
    ),
    mutant(
        "pieces without whole columns loaded at once",
        "global-bounds",
        TILE,
        "aligned && count >= kPieceColumns",
        "aligned && count > 0",
    ),
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
        "int r = next;",
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
        "activations of the first tile column",
        "numerics",
        MATMUL,
        "copy(x, token, step.tile * kSparseTile)",
        "copy(x, token, 0)",
    ),
    mutant(
        "tokens beyond the last stored", "global-bounds", MATMUL, "token + t >= p.tokens ||", ""
    ),
    mutant("rows beyond the last stored", "global-bounds", MATMUL, " || count <= 0", ""),
    mutant(
        "bias of the tile's first rows",
        "numerics",
        MATMUL,
        "FloatType::kFloat32, row + first,",
        "FloatType::kFloat32, first,",
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
        "split = 1; split < splits",
        "split = 2; split < splits",
    ),
    mutant(
        "halves of the lanes swapped once",
        "numerics",
        SAMPLE,
        "upper ? high : low",
        "upper ? low : high",
    ),
]
_BOX_MUTANTS = [
    mutant(
        "tokens beyond the last copied", "global-bounds", BOXES, "token + row < from.tokens", "true"
    ),
    mutant("rows at odd addresses mapped", "bulk-copy", BOXES, "stride % 8 == 0 && ", ""),
    mutant(
        "copies not expected", "smem-race-copy", BOXES, "from.mapped ? kBoxes * kBoxBytes : 0", "0"
    ),
]
_MATMUL_MMA_MUTANTS = [
    mutant("zeros missing", "smem-uninitialised", MATMUL_MMA, "w[i] = {};", ""),
    mutant(
        "zeros not fenced",
        "proxy-fence",
        MATMUL_MMA,
        "sm90::fence_proxy_async();  // zeros are for wgmma",
        "",
    ),
    mutant(
        "values not fenced",
        "proxy-fence",
        MATMUL_MMA,
        "sm90::fence_proxy_async();  // what this thread wrote is for wgmma",
        "",
    ),
    mutant(
        "stage filled before it is read",
        "smem-overwrite-wgmma",
        MATMUL_MMA,
        "s.ring.wait_empty(at);",
        "",
    ),
    mutant(
        "values stay in the stage",
        "numerics",
        MATMUL_MMA,
        "taken.store(s.w[at.stage], old, 0);",
        "",
    ),
    mutant(
        "values taken out by others after new ones came",
        "smem-race",
        MATMUL_MMA,
        "sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);",
        "",
    ),
    mutant(
        "more values than are fetched ahead stay",
        "numerics",
        MATMUL_MMA,
        "store_rest<kType>(s.w[at.stage], old, false);",
        "",
    ),
    mutant("stage read before it is full", "smem-race", MATMUL_MMA, "s.ring.wait_full(at);", ""),
    mutant(
        "stage released before the products are made",
        "smem-overwrite-wgmma",
        MATMUL_MMA,
        "sm90::wgmma_wait<0>(sums);\n      s.ring.release(at);",
        "s.ring.release(at);\n      sm90::wgmma_wait<0>(sums);",
    ),
    mutant(
        "tokens beyond the last one stored",
        "global-bounds",
        MATMUL_MMA,
        "if (token >= p.x.tokens) continue;",
        "",
    ),
]
_SAMPLE_MMA_MUTANTS = [
    mutant(
        "stage filled before it is read by the sample's products",
        "smem-overwrite-wgmma",
        SAMPLE_MMA,
        "s.ring.wait_empty<kPair>(at);",
        "",
    ),
    mutant(
        "copied tokens not fenced",
        "proxy-fence",
        SAMPLE_MMA,
        "sm90::fence_proxy_async();  // what this thread wrote is for wgmma",
        "",
    ),
    mutant(
        "stage of tokens read before it is full",
        "smem-race-copy",
        SAMPLE_MMA,
        "s.ring.wait_full(at);",
        "",
    ),
    mutant(
        "stage of tokens released before the products are made",
        "smem-overwrite-wgmma",
        SAMPLE_MMA,
        "sm90::wgmma_wait<0>(sums);\n      s.ring.release<kPair>(at);",
        "s.ring.release<kPair>(at);\n      sm90::wgmma_wait<0>(sums);",
    ),
    mutant(
        "sums overwritten before all have read them",
        "smem-race",
        SAMPLE_MMA,
        "sm90::barrier_sync(barrier, sm90::kWarpgroupThreads);  // the last part's reads",
        "",
    ),
    mutant(
        "sums read before all are there",
        "smem-race",
        SAMPLE_MMA,
        "    sm90::barrier_sync(barrier, sm90::kWarpgroupThreads);\n    const int column_tile",
        "    const int column_tile",
    ),
    mutant(
        "tiles beyond the last column asked for",
        "global-bounds",
        SAMPLE_MMA,
        "column_tile >= tiles || ",
        "",
    ),
    mutant("samples beyond the last stored", "global-bounds", SAMPLE_MMA, "index >= count || ", ""),
    mutant(
        "rows beyond the last of an odd tile asked for",
        "global-bounds",
        SAMPLE_MMA,
        " || item.row_tile >= p.sample.matrix.row_tiles()",
        "",
    ),
    mutant(
        "stage shared before the peer has read it",
        "smem-race-copy",
        SAMPLE_MMA,
        "s.ring.wait_empty<kPair>(at);",
        "s.ring.wait_empty(at);",
        "s.ring.release<kPair>(at);",
        "s.ring.release(at);",
        "s.ring.init(kPair * kMmaReaders",
        "s.ring.init(kMmaReaders",
    ),
    mutant(
        "a CTA ends while its peer arrives there",
        "exit",
        SAMPLE_MMA,
        "sm90::cluster_sync();  // the peer may still write and arrive here",
        "",
    ),
    mutant(
        "both CTAs fetch the same half",
        "smem-uninitialised",
        BOXES,
        "rank * (kBoxes / 2) + i",
        "i",
    ),
    mutant(
        "runs in one place", "global-race", SAMPLE_MMA, "[split * p.matrix.count + begin", "[begin"
    ),
]
MUTANTS = [
    *_TILE_MUTANTS,
    *_MATMUL_MUTANTS,
    *_TRANSPOSE_MUTANTS,
    *_SAMPLE_MUTANTS,
    *_BOX_MUTANTS,
    *_MATMUL_MMA_MUTANTS,
    *_SAMPLE_MMA_MUTANTS,
]
