"""The benchmark's arms that call other libraries, on stand-ins for those (`fake_peers.py`)."""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fake_peers
from wlib.bench import cli, runner
from wlib.bench.environment import environment
from wlib.bench.op import Arm
from wlib.bench.ops import OPS, peers
from wlib.bench.ops.peers.peer import Peer
from wlib.bench.rows import COPY, OURS, read_rows
from wlib.bench.suites import Problem

ATTENTION = {"heads": 4, "kv_heads": 2, "head_dim": 64, "q": 48, "kv": 48, "causal": 1}
SIZES = {
    "int4fp8": {"m": 5, "n": 48, "k": 256, "group_size": 128},
    "int4fp8_grouped": {"m": 7, "top_k": 2, "experts": 3, "n": 48, "k": 256, "group_size": 128},
    "fp4_quantize": {"m": 64, "k": 256},
    "fp4_linear": {"m": 64, "n": 32, "k": 128},
    "lora_merge": {"layers": 2, "n": 24, "k": 32, "rank": 4},
    "loha_merge": {"layers": 2, "n": 24, "k": 32, "rank": 4},
    "prefill": ATTENTION,
}
HERE = environment(torch.device("cpu"))
CASES = [(op, arm) for op, arms in peers.ARMS.items() for arm in arms]
NAMES = [f"{op}-{arm.name}" for op, arm in CASES]


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins run without a compiler and without a GPU, whose stream cuDNN is told."""
    monkeypatch.setitem(runner.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    stream = argparse.Namespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(Peer, "unavailable", classmethod(lambda cls, device: None))
    monkeypatch.setattr(Peer, "version", classmethod(lambda cls: f"{cls.package} 1.2"))


def measure(op: str, arm: type[Arm], sizes: dict[str, int]) -> runner.Point:
    """The point of one problem with one arm only."""
    plan = runner.Plan(
        replace(OPS[op], arms=(arm,)),
        (Problem(op, "test.shape", "", sizes),),
        torch.device("cpu"),
        1e-3,
        HERE,
    )
    (point,) = runner.measure_plan(plan)
    return point


@pytest.mark.parametrize(("op", "arm"), CASES, ids=NAMES)
def test_an_adapter_computes_what_the_op_computes(
    monkeypatch: pytest.MonkeyPatch, op: str, arm: type[Arm]
) -> None:
    fake_peers.install(monkeypatch)
    point = measure(op, arm, SIZES[op])
    assert point.failures == {}
    copy, row = point.rows
    assert (copy.arm, row.arm) == (COPY, arm.name)
    assert row.version == f"{arm.package} 1.2"
    assert not row.arm.startswith(OURS)


@pytest.mark.parametrize(
    "tamper",
    [lambda y: y * 1.3, lambda y: y.roll(1, -1), lambda y: y * torch.nan],
    ids=["scale", "shifted", "nan"],
)
@pytest.mark.parametrize(("op", "arm"), CASES, ids=NAMES)
def test_a_peer_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, op: str, arm: type[Arm], tamper: Callable[[Tensor], Tensor]
) -> None:
    fake_peers.install(monkeypatch, tamper)
    point = measure(op, arm, SIZES[op])
    assert [row.arm for row in point.rows] == [COPY]
    assert "dB from float64, expected at least" in point.failures[arm.name]


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("arm", peers.ARMS["prefill"], ids=lambda arm: arm.name)
def test_attention_of_a_chunk(monkeypatch: pytest.MonkeyPatch, arm: type[Arm], causal: int) -> None:
    fake_peers.install(monkeypatch)
    point = measure("prefill", arm, ATTENTION | {"q": 16, "causal": causal})
    assert point.failures == {}
    left_out = arm is peers.CudnnFp8 and causal  # whose mask would be aligned at the start
    assert len(point.rows) == (1 if left_out else 2)


@pytest.mark.parametrize("op", ["int4fp8", "int4fp8_grouped"])
def test_small_groups_are_not_for_fbgemm(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    fake_peers.install(monkeypatch)
    point = measure(op, peers.ARMS[op][-1], SIZES[op] | {"group_size": 64})
    assert (len(point.rows), point.failures) == (1, {})


def test_a_package_of_another_version_fails_its_arm_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_peers.install(monkeypatch)
    locon = importlib.import_module("lycoris.kernels.autograd.locon")
    monkeypatch.delattr(locon, "locon_diff_weight")
    point = measure("lora_merge", peers.LycorisLora, SIZES["lora_merge"])
    assert "ImportError: cannot import name 'locon_diff_weight'" in point.failures["lycoris"]


def bench(op: str, path: Path) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [op, "--cpu", "--quick", "--shapes", "tiny", f"--json={path}"]
    return cli.run(parser.parse_args(words))


def test_a_peer_that_fails_is_named_and_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_peers.install(monkeypatch, torch.zeros_like)
    assert bench("lora_merge", tmp_path / "rows.jsonl") == 0
    assert "lycoris: ValueError: 0.0 dB from float64" in capsys.readouterr().out
    assert "lycoris" not in {row.arm for row in read_rows(tmp_path / "rows.jsonl")}


def test_absent_packages_are_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(runner.COPY_BYTES, "cpu", 1 << 16)
    found = importlib.import_module("wlib.bench.ops.peers.peer")
    monkeypatch.setattr(found, "find_spec", lambda name: None)
    plans = [runner.Plan(op, (), torch.device("cpu"), 1e-3, HERE) for op in OPS.values()]
    assert list(cli._measure(plans)) == []
    lines = capsys.readouterr().out.splitlines()
    for package in {arm.package for _, arm in CASES}:
        named = [line for line in lines if f"not installed: pip install {package}:" in line]
        assert len(named) == 1
    lycoris = "left out, not installed: pip install lycoris-lora: lycoris of lora_merge, lycoris of"
    assert any(line.startswith(lycoris) for line in lines)


def test_an_installed_package_still_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = importlib.import_module("wlib.bench.ops.peers.peer")
    monkeypatch.setattr(found, "find_spec", lambda name: name)
    monkeypatch.setattr(found, "version", lambda package: "7.8")
    assert peers.Humming.unavailable(torch.device("cuda")) is None
    assert peers.Humming.unavailable(torch.device("cpu")) == "humming-kernels needs a GPU"
    assert peers.Humming.version() == "humming-kernels 7.8"
