"""What each primitive of sm90 computes in the simulator, and that each of its checks can fail."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from sim_problems import E4M3, from_bf16, probe, to_bf16

TIMINGS = ("eager", "random", "lazy")
PLANTED = probe.planted()
# Every name that a finding can have. Who adds one plants it, so that it is seen to fail.
CHECKS = {
    "bulk-copy", "cluster", "deadlock", "exit", "global-bounds", "global-race", "global-readonly",
    "global-uninitialised", "grid-dependency", "mbarrier", "mbarrier-object", "mbarrier-tx",
    "misaligned", "named-barrier", "proxy-fence", "registers", "smem-bounds",
    "smem-overwrite-store", "smem-overwrite-wgmma", "smem-race", "smem-race-copy",
    "smem-uninitialised", "warp-divergence", "wgmma-descriptor", "wgmma-divergence",
    "wgmma-fence", "wgmma-register", "wgmma-wait",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_shared_clocks_behave_like_plain_arrays(seed):
    """Blocks that clocks share must never show one clock's change in another."""
    rng = np.random.default_rng(seed)
    agents = 70
    clocks = [probe.Knowledge(agents) for _ in range(6)]
    plain = [np.zeros((2, agents), np.int64) for _ in clocks]
    for _ in range(400):
        a, b, agent = rng.integers(6), rng.integers(6), int(rng.integers(agents))
        match rng.integers(6):
            case 0:
                time = int(rng.integers(20))
                clocks[a].see(agent, time)
                plain[a][0, agent] = max(plain[a][0, agent], time)
            case 1:
                clocks[a].fence(agent)
                plain[a][1, agent] = plain[a][0, agent]
            case 2:
                clocks[a] = clocks[b].copy()
                plain[a] = plain[b].copy()
            case 3:
                clocks[a].meet(clocks[b])
                plain[a] = np.minimum(plain[a], plain[b])
            case _:
                clocks[a].join(clocks[b])
                plain[a] = np.maximum(plain[a], plain[b])
        for clock, expected in zip(clocks, plain, strict=True):
            known = [
                [clock.seen(i) for i in range(agents)],
                [clock.fenced(i) for i in range(agents)],
            ]
            np.testing.assert_array_equal(known, expected)


def schedules():
    for seed, timing in itertools.product(range(2), TIMINGS):
        yield probe.Options(seed=seed, timing=timing, preempt_every=7 * (seed % 2))


@pytest.mark.parametrize(("name", "check"), PLANTED, ids=[name for name, _ in PLANTED])
def test_planted_bug_is_found_and_its_repair_is_clean(name, check):
    for options in schedules():
        assert {f.check for f in probe.run_planted(name, True, options).findings} == {check}
        assert probe.run_planted(name, False, options).findings == []


def test_every_check_is_planted():
    assert {check for _, check in PLANTED} == CHECKS


def test_deadlock_names_every_waiting_thread_and_its_barrier():
    name = "more bytes expected than copied"
    (finding,) = probe.run_planted(name, True, probe.Options()).findings
    assert "32 threads, thread 0 (warp 0) .. thread 31 (warp 0)" in finding.message
    assert "for parity 0 of mbarrier" in finding.message
    assert "in phase 0 with 1 of 1 arrivals and 16 bytes outstanding" in finding.message
    name = "cluster barrier: a thread waits elsewhere"
    (finding,) = probe.run_planted(name, True, probe.Options()).findings
    assert "at the cluster barrier, where 96 of 128 threads have arrived" in finding.message
    assert "at named barrier 1, where 32 of 64 threads have arrived" in finding.message


def test_finding_points_at_the_line():
    name = "load of what a copy still brings"
    finding = probe.run_planted(name, True, probe.Options()).findings[0]
    assert finding.source.startswith("sim_planted_copy.cpp:")


def e4m3_operands(rng, n):
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    small = codes[np.abs(E4M3[codes]) <= 2.0]
    return rng.choice(small, (64, 128)), rng.choice(small, (n, 128))


@pytest.mark.parametrize("register_a", [False, True], ids=["ss", "rs"])
@pytest.mark.parametrize("n", [8, 16, 32, 64, 128, 256])
def test_wgmma_e4m3_reads_operands_where_cute_puts_them(n, register_a):
    rng = np.random.default_rng(n)
    for seed, timing in enumerate(TIMINGS):
        a, b = e4m3_operands(rng, n)
        d = np.full((64, n), np.nan, np.float32)
        report = probe.wgmma(a, b, d, register_a, probe.Options(seed=seed, timing=timing))
        assert report.findings == []
        assert report.wgmmas == 4
        # The largest sum has 24 bits above the smallest product, 2^-18, at most in rare elements.
        np.testing.assert_allclose(d, E4M3[a] @ E4M3[b].T, rtol=2**-20, atol=2**-18)


def test_wgmma_with_half_accumulators_rounds_once_per_instruction():
    """To nearest even after each of the four k steps, or towards zero where FP32 would truncate."""
    rng = np.random.default_rng(3)
    for seed, timing in enumerate(TIMINGS):
        a, b = e4m3_operands(rng, 64)
        d = np.full((64, 64), np.nan, np.float32)
        report = probe.wgmma(a, b, d, False, probe.Options(seed=seed, timing=timing), half=True)
        assert report.findings == []
        want = np.zeros((64, 64), np.float16)
        for k in range(0, 128, 32):
            step = slice(k, k + 32)
            want = (want + E4M3[a[:, step]] @ E4M3[b[:, step]].T).astype(np.float16)
        # Halfway cases aside, in which FP32 sums in another order may differ.
        ulp = np.spacing(np.abs(want)).astype(np.float64)
        assert np.all(np.abs(d - want) <= 4 * ulp)
        assert np.mean(d == want) > 0.99
    code = {value: int(np.flatnonzero(value == E4M3)[0]) for value in (16.0, 0.125, 1.0)}
    a, b = np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.uint8)
    a[:, 0], b[:, 0] = code[16.0], code[16.0]
    a[:, 1], b[:, 1] = code[1.0], code[0.125]  # 256.125 lies halfway between FP16 numbers
    a[:, 2], b[:, 2] = code[0.125], code[0.125]  # and this is above it
    for truncate, expected in ((False, 256.25), (True, 256.0)):
        probe.wgmma(a, b, d, False, probe.Options(truncate=truncate), half=True)
        assert np.all(d == expected)


def test_arithmetic_on_two_halves():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, (3, 20000), np.uint32)
    bits[:2, :400] = np.array([0, 0x3C00, 0x7C00, 0xFC00, 0x7E00, 1, 0x83FF, 0x7BFF]).repeat(50)
    a, b, c = bits.view(np.float16).astype(np.float64)
    with np.errstate(all="ignore"):
        for name, given, want in (
            ("add", bits[:2], a + b),
            ("sub", bits[:2], a - b),
            ("mul", bits[:2], a * b),
            ("max", bits[:2], np.fmax(a, b)),
            ("fma", bits, a * b + c),
            ("exp2", bits[:1], np.exp2(a)),
        ):
            got = getattr(probe, f"half2_{name}")(*given).view(np.float16)
            np.testing.assert_array_equal(got, want.astype(np.float16), name)
        codes = probe.half2_to_e4m3x2(bits[0]).view(np.uint8)
        want_codes = probe.float_to_e4m3(a.astype(np.float32))
    number = ~np.isnan(a)
    np.testing.assert_array_equal(codes[number], want_codes[number])
    assert np.all(codes[~number] == 0x7F)
    low, high = rng.normal(size=(2, 1000)).astype(np.float32)
    pair = np.stack((low, high), 1).astype(np.float16)
    np.testing.assert_array_equal(probe.pack_half2(low, high).view(np.float16), pair.ravel())


@pytest.mark.parametrize("register_a", [False, True], ids=["ss", "rs"])
def test_wgmma_bf16_reads_operands_where_cute_puts_them(register_a):
    rng = np.random.default_rng(1)
    for seed, timing in enumerate(TIMINGS):
        a, b = (to_bf16(rng.integers(-8, 9, (64, 64))) for _ in "ab")
        d = np.full((64, 64), np.nan, np.float32)
        options = probe.Options(seed=seed, timing=timing)
        assert probe.wgmma(a, b, d, register_a, options).findings == []
        np.testing.assert_array_equal(d, from_bf16(a) @ from_bf16(b).T)


@pytest.mark.parametrize("register_a", [False, True], ids=["ss", "rs"])
def test_wgmma_f16_reads_operands_where_cute_puts_them(register_a):
    rng = np.random.default_rng(1)
    for seed, timing in enumerate(TIMINGS):
        a, b = (rng.integers(-8, 9, (64, 64)).astype(np.float16) for _ in "ab")
        d = np.full((64, 64), np.nan, np.float32)
        options = probe.Options(seed=seed, timing=timing)
        assert probe.wgmma(a, b, d, register_a, options).findings == []
        np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32).T)


@pytest.mark.parametrize("half", [False, True], ids=["bf16", "f16"])
def test_mma_reads_fragments_where_cute_puts_them(half):
    rng = np.random.default_rng(1)
    for seed in range(3):
        a, b = (rng.integers(-8, 9, (rows, 16)).astype(np.float32) for rows in (16, 8))
        d = rng.integers(-99, 100, (16, 8)).astype(np.float32)
        want = d + a @ b.T
        a, b = (x.astype(np.float16) if half else to_bf16(x) for x in (a, b))
        assert probe.mma(a, b, d, probe.Options(seed=seed, preempt_every=3)).findings == []
        np.testing.assert_array_equal(d, want)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("first", [0, 13])
def test_matrix_loads_give_each_lane_two_numbers_of_each_matrix(first, transposed):
    """Rows as the lanes give them; register m of lane i holds row i / 4, columns i % 4 * 2 on."""
    x = np.arange(256, dtype=np.uint16).reshape(32, 8)
    out = np.zeros((32, 4), np.uint32)
    options = probe.Options(seed=first, preempt_every=3)
    assert probe.load_matrices(x, out, first, transposed, options).findings == []
    matrices = np.roll(x, -first, axis=0).reshape(4, 8, 8)
    matrices = matrices.transpose(0, 2, 1) if transposed else matrices
    pairs = matrices.reshape(4, 32, 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(32, 4, 2), pairs)


@pytest.mark.parametrize("dtype", [np.uint16, np.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("mn_major", [False, True], ids=["k-major", "mn-major"])
def test_wide_wgmma_reads_operands_where_cute_puts_them(mn_major, dtype):
    rng = np.random.default_rng(1)
    for seed, timing in enumerate(TIMINGS):
        a, b = (rng.integers(-8, 9, (rows, 64)).astype(np.float32) for rows in (64, 256))
        d = np.full((64, 256), np.nan, np.float32)
        stored = [to_bf16(x) if dtype == np.uint16 else x.astype(dtype) for x in (a, b)]
        options = probe.Options(seed=seed, timing=timing)
        assert probe.wgmma(*stored, d, False, options, mn_major=mn_major).findings == []
        np.testing.assert_array_equal(d, a @ b.T)


def test_truncated_accumulation_keeps_thirteen_bits_below_the_largest_addend():
    """256 + 2^-5 keeps its bit 13; 256 + 2^-6 loses it, towards zero for either sign."""
    code = {value: int(np.flatnonzero(value == E4M3)[0]) for value in (16.0, 1.0, 2**-5, 2**-6)}
    for low, expected in ((2**-5, 2**-5), (2**-6, 0.0)):
        for sign in (0, 128):
            a, b = np.zeros((64, 128), np.uint8), np.zeros((8, 128), np.uint8)
            a[:, 0], b[:, 0] = code[16.0], code[16.0]
            a[:, 1], b[:, 1] = code[1.0], code[low] | sign
            d = np.empty((64, 8), np.float32)
            probe.wgmma(a, b, d, True, probe.Options(truncate=True))
            assert np.all(d == 256 + (expected if sign == 0 else -expected))


def test_wgmma_nan_reaches_exactly_its_row_and_column():
    a, b = np.full((64, 128), 0x38, np.uint8), np.full((8, 128), 0x38, np.uint8)
    a[5, 100], b[3, 17] = 0x7F, 0xFF
    for truncate in (False, True):
        d = np.zeros((64, 8), np.float32)
        probe.wgmma(a, b, d, False, probe.Options(truncate=truncate))
        expected = np.full((64, 8), 128.0)
        expected[5, :] = expected[:, 3] = np.nan
        np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize(("rows", "columns"), [(64, 256), (5, 128), (130, 96), (1, 16)])
@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (0, 128), (64, 0), (-3, 0), (0, -16), (100, 40)]
)
@pytest.mark.parametrize("width", [32, 64, 128])
def test_tensor_copy_swizzles_like_cute_and_fills_with_zeros(rows, columns, row, column, width):
    rng = np.random.default_rng(rows)
    stride = (columns + 31) // 16 * 16
    memory = rng.integers(1, 256, rows * stride).astype(np.uint8)
    x = memory.reshape(rows, stride)[:, :columns]
    out = np.full((64, width), 255, np.uint8)
    report = probe.tensor_load(x, column, row, True, out, probe.Options(seed=rows))
    assert report.findings == []
    padded = np.zeros((400, 800), np.uint8)
    padded[100 : 100 + rows, 200 : 200 + columns] = x
    inside = padded[100 + row : 164 + row, 200 + column : 200 + column + width]
    np.testing.assert_array_equal(out, inside)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 32), (-1, 0), (0, 8), (9, 60)])
def test_tensor_copy_of_floats_lies_row_after_row(row, column):
    x = np.arange(1, 6 * 64 + 1, dtype=np.float32).reshape(6, 64)[:, :50]
    out = np.full((64, 128), 255, np.uint8)
    assert probe.tensor_load(x, column, row, False, out, probe.Options()).findings == []
    padded = np.zeros((100, 200), np.float32)
    padded[10:16, 10:60] = x
    expected = padded[10 + row : 74 + row, 10 + column : 42 + column]
    np.testing.assert_array_equal(out.view(np.float32), expected)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("phases", range(5))
def test_wait_passes_unless_the_current_phase_has_the_parity(phases, parity):
    """Parity 1 passes on a fresh barrier; later, the last completed phase's parity does."""
    findings = probe.phase_wait(phases, parity, probe.Options(seed=phases)).findings
    blocks = phases % 2 == parity
    assert [f.check for f in findings] == ["deadlock"] * blocks


@pytest.mark.parametrize("seed", range(4))
def test_warp_operations(seed):
    out = np.full((64, 5), np.nan, np.float32)
    report = probe.warp(out, probe.Options(seed=seed, preempt_every=3))
    assert report.findings == []
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(out[:, 0], 9)
    np.testing.assert_array_equal(out[:, 1], (lane ^ 4) + 0.5)
    np.testing.assert_array_equal(out[:, 2], sum(1 << i for i in range(0, 16, 3)))
    np.testing.assert_array_equal(out[:, 3].reshape(2, 32).sum(axis=1), 1)
    np.testing.assert_array_equal(out[:, 4], np.arange(64) // 32)


def test_any_lane_may_be_elected():
    leaders = Counter()
    for seed in range(32):
        out = np.zeros((64, 5), np.float32)
        probe.warp(out, probe.Options(seed=seed))
        leaders[int(np.flatnonzero(out[:32, 3])[0])] += 1
    assert len(leaders) > 8


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_cluster_stores_arrivals_and_multicast_reach_the_cta_that_is_meant(size):
    rng = np.random.default_rng(size)
    for seed, timing in itertools.product(range(3), TIMINGS):
        x = rng.integers(0, 256, 128).astype(np.uint8)
        out = np.full((size, size, 32), np.nan, np.float32)
        gathered = np.zeros((size, 128), np.uint8)
        report = probe.cluster(x, out, gathered, probe.Options(seed=seed, timing=timing))
        assert report.findings == []
        cta, source, lane = np.indices(out.shape)
        np.testing.assert_array_equal(out, 1000 * source + 100 * cta + lane)
        np.testing.assert_array_equal(gathered, np.tile(x, (size, 1)))


def test_ctas_share_items_and_race_only_where_they_overlap():
    out = np.zeros((2, 10, 2), np.int32)
    assert probe.grid(4, out, 0, probe.Options()).findings == []
    np.testing.assert_array_equal(out[:, :, 0], np.tile(np.arange(10) % 4, (2, 1)))
    np.testing.assert_array_equal(out[:, :, 1], 4)
    # Shifted by one, a CTA's second word is the next one's first: threads that never run together.
    checks = {f.check for f in probe.grid(4, out, 1, probe.Options()).findings}
    assert checks == {"global-race"}
