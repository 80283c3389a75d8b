"""Planted bugs in the attention kernel: textual edits, and the check that must fire."""

from __future__ import annotations

from sim.planting import Mutant

KERNEL = "csrc/prefill/sm90_attention.h"
EXPAND = "csrc/prefill/sm90_attention_expand.h"
ROWS = "csrc/prefill/sm90_attention_rows.h"
CONFIG = "csrc/prefill/sm90_attention_config.h"
HALF = "csrc/prefill/sm90_attention_half.h"
COMBINE = "csrc/prefill/sm90_attention_combine.h"


def mutant(name: str, caught_by: str, file: str, *texts: str) -> Mutant:
    return Mutant.of(name, caught_by, file, "sim_attention.cpp", *texts)


_SYNCHRONISATION = [
    mutant(
        "expanded tiles without a proxy fence",
        "proxy-fence",
        EXPAND,
        "    sm90::fence_proxy_async();  // what this thread wrote is for wgmma\n",
        "",
    ),
    mutant(
        "queries without a proxy fence", "proxy-fence", KERNEL, "  sm90::fence_proxy_async();\n", ""
    ),
    mutant(
        "stage handed over before all have written it",
        "smem-race",
        EXPAND,
        "    sm90::barrier_sync(kProducerBarrier, sm90::kWarpgroupThreads);\n",
        "",
    ),
    mutant(
        "INT4 block not waited for",
        "smem-race-copy",
        EXPAND,
        "    sm90::mbarrier_wait(s.raw_full[raw.stage], raw.parity);\n",
        "",
    ),
    mutant(
        "INT4 block waited for with the wrong parity",
        "smem-race-copy",
        EXPAND,
        "s.raw_full[raw.stage], raw.parity)",
        "s.raw_full[raw.stage], raw.parity ^ 1)",
    ),
    mutant(
        "INT4 block fetched into a stage that is still read",
        "smem-race-copy",
        EXPAND,
        "i < C::kRawStages - 1; ++i) fetch_next",
        "i < C::kRawStages; ++i) fetch_next",
    ),
    mutant(
        "scales not in the expected bytes",
        "deadlock",
        EXPAND,
        "2 * (C::kRawBytes + sizeof s.raw_scale[0][0])",
        "2 * C::kRawBytes",
    ),
    mutant(
        "expanded stage overwritten while in use",
        "smem-overwrite-wgmma",
        EXPAND,
        "    s.ring.wait_empty(at);\n",
        "",
    ),
    mutant(
        "stage released before its values are multiplied",
        "smem-overwrite-wgmma",
        KERNEL,
        "    sm90::wgmma_wait<0>(slice);\n    add_slice(C::kSlices - 1);\n"
        "    s.ring.release(values_at);",
        "    s.ring.release(values_at);\n    sm90::wgmma_wait<0>(slice);\n"
        "    add_slice(C::kSlices - 1);",
    ),
    mutant(
        "one consumer releases for two",
        "smem-overwrite-wgmma",
        KERNEL,
        "/*readers=*/kConsumers * 4",
        "/*readers=*/4",
    ),
    mutant(
        "expanded stage not waited for",
        "smem-race",
        KERNEL,
        "    s.ring.wait_full(scores_at);\n",
        "",
    ),
    mutant(
        "queries multiplied before all have stored them",
        "smem-race",
        KERNEL,
        "  sm90::fence_proxy_async();\n  sm90::barrier_sync(kConsumerBarrier + c.index, 128);\n",
        "  sm90::fence_proxy_async();\n",
    ),
    mutant(
        "wait for the next scores missing",
        "wgmma-register",
        KERNEL,
        "  if constexpr (kAhead) sm90::wgmma_wait<0>(c.next);\n",
        "",
    ),
    mutant(
        "wait for the first slice leaves it in flight",
        "wgmma-register",
        KERNEL,
        "add_first_slices<kAhead ? 1 : 0>",
        "add_first_slices<2>",
    ),
    mutant(
        "fence before the values missing",
        "wgmma-fence",
        KERNEL,
        "    sm90::wgmma_fence();\n    WLIB_UNROLL\n"
        "    for (int step = 0; step < kKeys / 32; ++step)",
        "    WLIB_UNROLL\n    for (int step = 0; step < kKeys / 32; ++step)",
    ),
    mutant(
        "consumer 0 is not given its first turn",
        "deadlock",
        KERNEL,
        "  if (index == 1) c.end_turn();  // consumer 0 begins\n",
        "",
    ),
    mutant(
        "turn passed on to oneself",
        "deadlock",
        KERNEL,
        "kTurnBarrier + 1 - index, kConsumers * 128",
        "kTurnBarrier + index, kConsumers * 128",
    ),
    mutant(
        "consumers take all registers",
        "deadlock",
        CONFIG,
        "static constexpr int kConsumerRegs = sm90::consumer_registers(kConsumers, kProducerRegs);",
        "static constexpr int kConsumerRegs = 240;",
    ),
    mutant(
        "barriers initialised without a barrier after it",
        "mbarrier",
        KERNEL,
        "  sm90::block_sync();\n",
        "",
    ),
]
_NUMERICS = [
    mutant(
        "slots of values in the order of keys",
        "numerics",
        EXPAND,
        "slot / 16 * 16 + slot % 16 / 2 + j / 2 * 8 + j % 2",
        "slot + j",
    ),
    mutant(
        "halves of a unit swapped",
        "numerics",
        EXPAND,
        "first.word[w] = int4kv::first_bytes(codes.word[w]);",
        "first.word[w] = int4kv::second_bytes(codes.word[w]);",
    ),
    mutant(
        "fragments of a row pair swapped", "numerics", ROWS, "g % 2 * 2 + r]", "g % 2 * 2 + 1 - r]"
    ),
    mutant("mask off by one", "numerics", ROWS, "key >= seen.end", "key > seen.end"),
    mutant("window off by one", "numerics", ROWS, "key < seen.begin", "key <= seen.begin"),
    mutant(
        "no mask where the first row sees all",
        "numerics",
        KERNEL,
        "end = int(item.range(p, 0).end);",
        "end = int(item.range(p, item.rows / item.group - 1).end);",
    ),
    mutant(
        "no mask on blocks that are not full",
        "numerics",
        KERNEL,
        "tile.count == kKeys && tile.first >= begin",
        "tile.first >= begin",
    ),
    mutant(
        "wrong page",
        "numerics",
        EXPAND,
        "walk.item.sequence * p.max_blocks + walk.tile",
        "walk.item.sequence * p.max_blocks",
    ),
    mutant(
        "output not brought to the step's unit",
        "numerics",
        ROWS,
        "rescale[r] * (rows.unit / unit)",
        "rescale[r]",
    ),
    mutant(
        "output not rescaled",
        "numerics",
        ROWS,
        "rescale[r] * (rows.unit / unit)",
        "rows.unit / unit",
    ),
    mutant(
        "values' scales in the row sum",
        "numerics",
        KERNEL,
        "  exponentiate(scales, rows, c.scores, step);\n  scale_values(scales, c.scores);",
        "  exponentiate(scales, rows, c.scores, step);\n"
        "  rows.sum[0] *= scales.v[0];\n  scale_values(scales, c.scores);",
    ),
    mutant(
        "slots behind the last key scaled",
        "numerics",
        EXPAND,
        "if (of >= tile.count) return 0.0f;",
        "if (of > kKeys) return 0.0f;",
    ),
    mutant("sink missing", "numerics", ROWS, "p.sinks && p.plan.splits == 1", "p.softcap < 0"),
    mutant(
        "sink of the first head for all",
        "numerics",
        ROWS,
        "p.sinks[head] * kLog2E",
        "p.sinks[0] * kLog2E",
    ),
    mutant(
        "mean missing in the LSE",
        "numerics",
        ROWS,
        "- kProbabilityLog2 + mean)",
        "- kProbabilityLog2)",
    ),
    mutant(
        "mean missing under the cap",
        "numerics",
        ROWS,
        " + rows.mean[r])",
        ")",
    ),
    mutant(
        "query head of the wrong row",
        "global-race",
        CONFIG,
        "kv_head * group + row % group;",
        "kv_head * group;",
    ),
    mutant(
        "new keys one token late",
        "global-bounds",
        EXPAND,
        "p.starts[item.sequence] + tile.first - item.cached;",
        "p.starts[item.sequence] + tile.first - item.cached + 1;",
    ),
    mutant(
        "odd stages in the columns of even ones",
        "smem-overwrite-wgmma",
        CONFIG,
        "value_column(int stage) { return stage % 2 * kSwizzleRow / 2; }",
        "value_column(int) { return 0; }",
    ),
    mutant(
        "second slice where the first is",
        "numerics",
        KERNEL,
        "j * C::kSliceColumns * kSwizzleRow >> 4",
        "0 * j * C::kSliceColumns >> 4",
    ),
    mutant("last part of the keys lost", "numerics", CONFIG, "index % p.plan.splits;", "0;"),
    mutant("sink in every part, and again", "numerics", ROWS, " && p.plan.splits == 1", ""),
    mutant(
        "parts added up unweighted", "numerics", COMBINE, "out.x += weight *", "out.x += factor *"
    ),
    mutant(
        "rows beyond the tile stored",
        "global-bounds",
        KERNEL,
        "    if (row >= item.rows) continue;\n    const int64_t query",
        "    const int64_t query",
    ),
]
# In the kernel with FP16 scores.
_HALF = [
    mutant(
        "mask of the second half off by one",
        "numerics",
        HALF,
        "key + 1 >= seen.end",
        "key >= seen.end",
    ),
    mutant("mask of the other row", "numerics", HALF, "tile, v % 2, column", "tile, 0, column"),
    mutant(
        "largest score without the odd keys",
        "numerics",
        HALF,
        "highest[0] >> 16 | (highest[1] & 0xffff0000)",
        "(highest[0] & 0xffff) | highest[1] << 16",
    ),
    mutant(
        "step's largest score taken for the row's",
        "numerics",
        HALF,
        "step.advance(rows, unit, r) + step.highest[r] * step.scale[r]",
        "step.advance(rows, unit, r) * 0 + kProbabilityLog2",
    ),
    mutant(
        "-inf less -inf",
        "numerics",
        HALF,
        "step.highest[r] < -kLargestHalf ? -kLargestHalf",
        "false ? 0",
    ),
    mutant("scale of the keys overflows", "numerics", HALF, "scale = kLargestHalf;", ";"),
    mutant("scale of the keys becomes zero", "numerics", HALF, "scale = kSmallestHalf;", ";"),
    mutant("sum of one half", "numerics", HALF, "(two.x + two.y)", "two.x"),
    mutant(
        "fragment of the wrong keys",
        "numerics",
        HALF,
        "s[4 * g + 2 + r])) << 16",
        "s[4 * g + r])) << 16",
    ),
    mutant(
        "scales in the order of keys",
        "numerics",
        CONFIG,
        "key % 8 / 2 * (kKeys / 4) + key / 8 * 2 + key % 2",
        "key",
    ),
    mutant(
        "signs of the queries kept", "numerics", KERNEL, " < 0 ? 0x80808080 : 0", " < 0 ? 0 : 0"
    ),
    mutant(
        "new keys with FP16 scores",
        "numerics",
        CONFIG,
        "p.allow_fp16_scores && !p.k_new",
        "p.allow_fp16_scores",
    ),
]
MUTANTS = [*_SYNCHRONISATION, *_NUMERICS, *_HALF]
