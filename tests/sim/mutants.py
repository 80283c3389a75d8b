"""Planted bugs in the int4fp8 kernels and the ring: textual edits, and the check that must fire.

`numerics` is the comparison with the float64 reference; every other name is one of the simulator's.
"""

from __future__ import annotations

from sim.planting import Mutant

KERNEL = "csrc/int4fp8/sm90_decode.h"
CONFIG = "csrc/int4fp8/sm90_decode_config.h"
QUANTIZER = "csrc/int4fp8/sm90_quantize.h"
QUANTIZER_ROWS = "csrc/int4fp8/sm90_quantize_rows.h"
STORE = "csrc/int4fp8/sm90_store.h"
COOPERATIVE = "csrc/int4fp8/sm90_cooperative.h"
COOPERATIVE_CONFIG = "csrc/int4fp8/sm90_cooperative_config.h"
FRAGMENTS = "csrc/int4fp8/sm90_fragments.h"
GROUP_SUMS = "csrc/int4fp8/sm90_group_sums.h"
RING = "include/wlib/sm90/ring.h"
WGMMA = "include/wlib/sm90/wgmma.h"
SOURCES = {  # the instrumented file of kernels other than the decode kernel
    COOPERATIVE: "sim_cooperative.cpp",
    COOPERATIVE_CONFIG: "sim_cooperative.cpp",
    QUANTIZER: "sim_quantize.cpp",
    QUANTIZER_ROWS: "sim_quantize.cpp",
    GROUP_SUMS: "sim_quantize.cpp",
}


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, SOURCES.get(file, "sim_int4fp8.cpp"), *texts)


CONTROL = mutant("nothing changed", "", RING, "#pragma once", "#pragma once")
_COOPERATIVE_MUTANTS = [
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
_ZERO_MUTANTS = [
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
_RING_MUTANTS = [
    mutant("empty wait: wrong parity", "deadlock", RING, "at.parity ^ 1", "at.parity"),
    mutant(
        "full wait: wrong parity",
        "smem-race-copy",
        RING,
        "mbarrier_wait(full[at.stage], at.parity)",
        "mbarrier_wait(full[at.stage], at.parity ^ 1)",
    ),
    mutant("full wait missing", "smem-race-copy", KERNEL, "  c.ring.wait_full(c.at);\n", ""),
    mutant("empty wait missing", "mbarrier", KERNEL, "s.ring[g].wait_empty(at[g]);", ""),
    mutant("stage released without warp_sync", "smem-race", RING, "    warp_sync();", "    //"),
    mutant("one warp releases for four", "smem-overwrite-wgmma", KERNEL, "/*readers=*/kWarps", "1"),
    mutant(
        "stage released before the wgmma wait",
        "smem-overwrite-wgmma",
        KERNEL,
        "  c.ring.release(c.at);\n",
        "",
        "    sm90::wgmma_wait<0>(products);",
        "    c.ring.release(c.at);\n    sm90::wgmma_wait<0>(products);",
    ),
    mutant(
        "barriers initialised without the fence",
        "mbarrier",
        RING,
        "    mbarrier_init_fence();\n",
        "",
    ),
    mutant(
        "activations not in the expected bytes",
        "deadlock",
        KERNEL,
        "(load_x ? C::kActivationBytes : 0)",
        "0",
    ),
    mutant(
        "resident activations expected again",
        "deadlock",
        KERNEL,
        "(load_x ? C::kActivationBytes : 0)",
        "C::kActivationBytes",
    ),
    mutant(
        "producer starts every item at stage 0",
        "deadlock",
        KERNEL,
        "  sm90::RingCursor<C::kStages> at[C::kConsumers];\n",
        "",
        "    const uint8_t* tiles =",
        "    sm90::RingCursor<C::kStages> at[C::kConsumers];\n    const uint8_t* tiles =",
    ),
    mutant(
        "every lane of the producer warp loads",
        "mbarrier",
        KERNEL,
        "if (sm90::elect()) produce",
        "produce",
    ),
]
_WGMMA_MUTANTS = [
    mutant(
        "wgmma wait missing", "wgmma-register", KERNEL, "    sm90::wgmma_wait<0>(products);", ""
    ),
    mutant("wgmma commit missing", "wgmma-register", KERNEL, "  sm90::wgmma_commit();\n", ""),
    mutant(
        "no fence after the fragments are decoded",
        "wgmma-fence",
        KERNEL,
        "load_fragments<Fragment::kOdd>(tile, a);\n  sm90::wgmma_fence();",
        "load_fragments<Fragment::kOdd>(tile, a);",
    ),
    mutant(
        "constant operand written without a proxy fence",
        "proxy-fence",
        KERNEL,
        "  sm90::fence_proxy_async();\n",
        "",
    ),
    mutant(
        "no fence before the first wgmma",
        "wgmma-fence",
        KERNEL,
        "x_sums : products;\n  sm90::wgmma_fence();",
        "x_sums : products;",
    ),
    mutant(
        "next fragments decoded during the wgmma",
        "wgmma-register",
        KERNEL,
        "  // while the tensor cores work",
        "load_fragments<Fragment::kOdd>(tile, a);",
    ),
    mutant(
        "descriptor without swizzle",
        "wgmma-descriptor",
        WGMMA,
        "kSwizzle128 = 1,",
        "kSwizzle128 = 0,",
    ),
    mutant(
        "descriptor steps of 16 bytes",
        "numerics",
        WGMMA,
        "kDescriptorKStep = 2",
        "kDescriptorKStep = 1",
    ),
    mutant(
        "consumers take all registers",
        "deadlock",
        CONFIG,
        "kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs)",
        "kConsumerRegs = 256",
    ),
]
_CLUSTER_MUTANTS = [
    mutant(
        "no barrier after the initialisation",
        "mbarrier",
        KERNEL,
        "  sm90::cluster_sync();\n  const int group",
        "  const int group",
    ),
    mutant(
        "CTA barrier after the initialisation",
        "mbarrier",
        KERNEL,
        "  sm90::cluster_sync();\n  const int group",
        "  sm90::block_sync();\n  const int group",
    ),
    mutant(
        "exit while peers arrive",
        "exit",
        KERNEL,
        "  sm90::cluster_sync();  // peers",
        "  // peers",
    ),
    mutant(
        "partial sums acquired in the CTA only",
        "smem-race",
        KERNEL,
        "mbarrier_wait_cluster(s.gathered[",
        "mbarrier_wait(s.gathered[",
    ),
    mutant(
        "partial sums not waited for",
        "smem-uninitialised",
        KERNEL,
        "  sm90::mbarrier_wait_cluster(s.gathered[turn.buffer], turn.parity);\n",
        "",
    ),
    mutant(
        "partial sums overwritten",
        "smem-race",
        KERNEL,
        "    sm90::mbarrier_wait_cluster(s.consumed[turn.buffer], turn.parity ^ 1);\n",
        "",
    ),
    mutant(
        "partial sums overwritten before the peers' reads are known",
        "smem-race",
        KERNEL,
        "mbarrier_wait_cluster(s.consumed[",
        "mbarrier_wait(s.consumed[",
    ),
    mutant(
        "arrival without warp_sync",
        "smem-race",
        KERNEL,
        "  sm90::warp_sync();\n  if (sm90::lane_index() < 1",
        "  if (sm90::lane_index() < 1",
    ),
    mutant(
        "arrivals of one CTA awaited",
        "deadlock",
        KERNEL,
        "mbarrier_init(s.gathered[buffer], (C::kConsumers * kWarps) << p.split_log2)",
        "mbarrier_init(s.gathered[buffer], C::kConsumers * kWarps)",
    ),
    mutant("parity of the items stays", "smem-race", KERNEL, "parity(index / 2 % 2)", "parity(0)"),
    mutant(
        "one buffer for two items", "smem-race", KERNEL, "&s.partial[buffer][", "&s.partial[0]["
    ),
    mutant(
        "item finished in the buffer of the next",
        "deadlock",
        KERNEL,
        "Turn(done - 1), rank);\n  }",
        "Turn(done), rank);\n  }",
    ),
    mutant(
        "partial sums share a place",
        "smem-race",
        KERNEL,
        "[source * share + token % share]",
        "[source + token % share]",
    ),
]
_VALUE_MUTANTS = [
    mutant(
        "nibbles swapped",
        "numerics",
        FRAGMENTS,
        "uint32_t word, uint32_t& a, uint32_t& b",
        "uint32_t word, uint32_t& b, uint32_t& a",
    ),
    mutant(
        "correction of the odd codes with the wrong sign",
        "numerics",
        KERNEL,
        "kOddPlusOne : kOddMinusOne",
        "kOddPlusOne : kOddPlusOne",
    ),
    mutant(
        "scales of rows r and r + 8 swapped",
        "numerics",
        KERNEL,
        "rows.scale[v / 2 % 2]",
        "rows.scale[1 - v / 2 % 2]",
    ),
    mutant(
        "zero points of rows r and r + 8 swapped",
        "numerics",
        KERNEL,
        "rows.zero[v / 2 % 2]",
        "rows.zero[1 - v / 2 % 2]",
    ),
    mutant(
        "second group takes the scales of the first",
        "numerics",
        KERNEL,
        "const RowPair<C> rows(tile, group)",
        "const RowPair<C> rows(tile, 0)",
    ),
    mutant(
        "activations of the wrong tile",
        "numerics",
        KERNEL,
        "(k + g) * int4::kTileColumns",
        "k * int4::kTileColumns",
    ),
    mutant(
        "activations fetched once that do not fit",
        "smem-race-copy",
        CONFIG,
        "activations_fit(p->k_tiles, 1 << split_log2, C::kConsumers, C::kStages)",
        "true",
    ),
    mutant(
        "activations of the first token block for all",
        "numerics",
        CONFIG,
        "p->token_blocks == 1 &&",
        "",
    ),
    mutant(
        "activations of the first item for all",
        "numerics",
        KERNEL,
        "!p.x_resident || i == first_item(p)",
        "i == first_item(p)",
    ),
    mutant(
        "resident activations looked for in the stage of the weights",
        "smem-uninitialised",
        KERNEL,
        "p.x_resident ? tile : consumer.at.stage",
        "consumer.at.stage",
    ),
    mutant(
        "activations looked for in the stage of their number though not resident",
        "smem-race-copy",
        KERNEL,
        "p.x_resident ? tile : consumer.at.stage",
        "tile % C::kStages",
    ),
    mutant(
        "a k tile added up twice",
        "numerics",
        KERNEL,
        "(rank + 1) >> p.split_log2)",
        "(rank + 1) >> p.split_log2) + (rank == 0 && p.split_log2)",
    ),
    mutant(
        "sums carried into the next item",
        "numerics",
        KERNEL,
        "    float sum[C::kRegs] = {};\n",
        "",
        "  int done = 0;",
        "  float sum[C::kRegs] = {};\n  int done = 0;",
    ),
    mutant(
        "odd row tail written", "global-bounds", STORE, "gated && n + 1 < p.n", "gated && n < p.n"
    ),
    mutant(
        "bias read beyond the odd row tail",
        "global-bounds",
        STORE,
        "at, n + 1 < p.n, /*aligned",
        "at, true, /*aligned",
    ),
    mutant(
        "one token too many",
        "global-bounds",
        KERNEL,
        "m >= item.end_token || item.n >= p.n",
        "m > item.end_token || item.n >= p.n",
    ),
]
_EPILOGUE_MUTANTS = [
    mutant("gate and up swapped", "numerics", STORE, "silu(v0) * v1", "silu(v1) * v0"),
    mutant("gate without silu", "numerics", STORE, "silu(v0) * v1", "v0 * v1"),
    mutant("gated outputs as far apart as rows", "global-bounds", STORE, "gated ? n / 2 : n", "n"),
    mutant("gated outputs in pairs", "global-race", STORE, "both = !gated && n", "both = n"),
    mutant(
        "residual before the activation",
        "numerics",
        STORE,
        "  if (e.activation == Activation::kSiluMul) v0",
        "  v0 += residual.x;\n  if (e.activation == Activation::kSiluMul) v0",
        "  v0 += residual.x;\n  v1",
        "  v1",
    ),
    mutant(
        "residual of another lane",
        "global-race",
        STORE,
        "residual_type, to.at",
        "residual_type, to.at ^ 1",
    ),
    mutant(
        "residual of the first pair for the second",
        "numerics",
        STORE,
        "v1 += residual.y",
        "v1 += residual.x",
    ),
    mutant("FP8 outputs unscaled", "numerics", STORE, "= *e.out_scale", "= 1"),
    mutant(
        "wider rows than y has",
        "global-bounds",
        STORE,
        "int64_t(m) * p.columns",
        "int64_t(m) * p.n",
    ),
]
_QUANTIZER_MUTANTS = [
    mutant(
        "maxima read before a barrier",
        "smem-uninitialised",
        QUANTIZER,
        "  sm90::block_sync();\n",
        "",
    ),
    mutant(
        "half of the lanes left out of the maximum",
        "numerics",
        QUANTIZER,
        "lanes = 16",
        "lanes = 8",
    ),
    mutant(
        "half of the warps left out of the maximum",
        "numerics",
        QUANTIZER,
        "lanes = warps / 2",
        "lanes = warps / 4",
    ),
    mutant(
        "rows of a CTA mixed",
        "numerics",
        QUANTIZER,
        "by_warp[warp / warps * warps + lane % warps]",
        "by_warp[lane % warps]",
    ),
    mutant(
        "tail of a row written beyond it", "global-race", QUANTIZER, "if (i < count) to[i]", "to[i]"
    ),
    mutant(
        "rows beyond the last one quantised",
        "global-bounds",
        QUANTIZER,
        "row < p.rows ? int(p.k) : 0",
        "int(p.k)",
    ),
    mutant(
        "scale of the first row for all",
        "global-race",
        QUANTIZER,
        "p.scale[part.row] = scale",
        "p.scale[0] = scale",
    ),
    mutant(
        "rows of a CTA hold their values in one place",
        "smem-race",
        QUANTIZER,
        "threads_ + sm90::thread_index()]",
        "threads_ + part_.thread]",
    ),
    mutant("runs of two units overlap", "numerics", QUANTIZER, "(run * kUnits + i)", "(run + i)"),
    mutant(
        "runs beyond the last one held",
        "smem-bounds",
        QUANTIZER,
        "        if (run + i >= part_.runs) break;\n",
        "",
    ),
    mutant(
        "code 0 not forced where the scale is 0",
        "numerics",
        QUANTIZER,
        "    if (scale == 0) codes = uint2{0, 0};\n",
        "",
    ),
    mutant(
        "sums of rows beyond the padding",
        "global-bounds",
        QUANTIZER,
        "first < p.k && part.row < p.pitch",
        "first < p.k",
    ),
    mutant(
        "sums of groups beyond the row",
        "global-bounds",
        QUANTIZER,
        "leads && first < p.k &&",
        "leads &&",
    ),
    mutant(
        "sums of two groups in one",
        "numerics",
        QUANTIZER,
        "sum_of_codes(codes.y), kRowRun, p.group_log2",
        "sum_of_codes(codes.y), kRowRun, p.group_log2 + 1",
    ),
    mutant("eps left out", "numerics", QUANTIZER, "float(p.k) + p.eps)", "float(p.k))"),
    mutant(
        "whole run read beyond the row",
        "global-bounds",
        QUANTIZER_ROWS,
        "if (count > 0) run = ",
        "run = ",
    ),
    mutant(
        "tail of a row read beyond it",
        "global-bounds",
        QUANTIZER_ROWS,
        "if (i < count) run.value[i] = from[i];",
        "run.value[i] = from[i];",
    ),
    mutant(
        "new residual written beyond the row",
        "global-bounds",
        QUANTIZER_ROWS,
        "if (i < count) to[i] = run.value[i];",
        "to[i] = run.value[i];",
    ),
    mutant(
        "sum with the residual not rounded",
        "numerics",
        QUANTIZER_ROWS,
        "value[i] = as_float(sum.value[i]);",
        "value[i] = as_float(raw.x.value[i]) + "
        "(residual ? as_float(raw.residual.value[i]) : 0.0f);",
    ),
    mutant(
        "residual at the distance of x's rows",
        "numerics",
        QUANTIZER_ROWS,
        "row * p.residual_stride",
        "row * p.x_stride",
    ),
    mutant(
        "what is beyond the row normalised",
        "numerics",
        QUANTIZER_ROWS,
        "i < count ? value[i] * factor * as_float(w.value[i]) : 0.0f",
        "value[i] * factor * as_float(w.value[i])",
    ),
    mutant(
        "weight of the first columns for all",
        "numerics",
        QUANTIZER_ROWS,
        "static_cast<const T*>(weight) + first",
        "static_cast<const T*>(weight)",
    ),
    mutant(
        "gate and up swapped in interleaved pairs",
        "numerics",
        QUANTIZER_ROWS,
        "raw.gate.value[i] = half.value[i * 2 % kRowRun];",
        "raw.gate.value[i] = half.value[(i * 2 + 1) % kRowRun];",
        "raw.up.value[i] = half.value[i * 2 % kRowRun + 1];",
        "raw.up.value[i] = half.value[i * 2 % kRowRun];",
    ),
    mutant(
        "second half of interleaved pairs from the wrong place",
        "numerics",
        QUANTIZER_ROWS,
        "pairs + kRowRun, count",
        "pairs + kRowRun / 2, count",
    ),
]
_GROUP_SUMS_MUTANTS = [
    mutant(
        "group sums: tokens of the padding read",
        "global-bounds",
        GROUP_SUMS,
        "if (token < p.rows && column < p.k)",
        "if (column < p.k)",
    ),
    mutant(
        "group sums: columns beyond the row read",
        "global-bounds",
        GROUP_SUMS,
        "if (token < p.rows && column < p.k)",
        "if (token < p.rows)",
    ),
    mutant(
        "group sums: groups beyond the row stored",
        "global-bounds",
        GROUP_SUMS,
        "if (leads && column < p.k)",
        "if (leads)",
    ),
    mutant(
        "group sums: two groups in one",
        "numerics",
        GROUP_SUMS,
        "lanes * run < 1 << group_log2",
        "lanes * run <= 1 << group_log2",
    ),
    mutant(
        "group sums: every lane stores",
        "global-race",
        GROUP_SUMS,
        "if (leads && column",
        "if (column",
    ),
    mutant(
        "group sums: tokens of one CTA at the first one's place",
        "global-race",
        GROUP_SUMS,
        "* p.pitch + token]",
        "* p.pitch + token / kSumsAlignment * kSumsAlignment]",
    ),
    mutant(
        "group sums: warps skip tiles",
        "numerics",
        GROUP_SUMS,
        "first += kStride",
        "first += 2 * kStride",
    ),
]
MUTANTS = [
    *_RING_MUTANTS,
    *_WGMMA_MUTANTS,
    *_CLUSTER_MUTANTS,
    *_VALUE_MUTANTS,
    *_EPILOGUE_MUTANTS,
    *_QUANTIZER_MUTANTS,
    *_GROUP_SUMS_MUTANTS,
    *_COOPERATIVE_MUTANTS,
    *_ZERO_MUTANTS,
]
