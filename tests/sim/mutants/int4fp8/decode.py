"""Bugs planted in the decode kernel and in what it builds on: ring, wgmma, cluster, values."""

from __future__ import annotations

from sim.mutants.int4fp8.planted import CONFIG, FRAGMENTS, KERNEL, RING, STORE, WGMMA, mutant

RING_MUTANTS = [
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

WGMMA_MUTANTS = [
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

CLUSTER_MUTANTS = [
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

VALUE_MUTANTS = [
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
