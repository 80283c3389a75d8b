"""Conversion as a whole: files in, files out, memory, failures, the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import wlib
from source_tree import ROOT
from wlib.__main__ import main
from wlib.formats import Checkpoint, convert
from wlib.formats.cli import ProgressBar
from wlib.formats.safetensors import SafetensorsWriter

INDEX = "model.safetensors.index.json"


def model(layers: int = 3) -> dict[str, Tensor]:
    """Layers [32, 128] in wlib's format, with what else a model has."""
    tensors = {
        "embed.weight": torch.randn(50, 64).half(),
        "norm.weight": torch.randn(64).bfloat16(),
        "lm_head.weight": torch.randn(50, 64).half(),
    }
    for i in range(layers):
        weight = wlib.Int4Weight.quantize(torch.randn(32, 128), 64)
        tensors |= {f"{i}.proj.codes": weight.codes, f"{i}.proj.group_scale": weight.group_scale}
        tensors[f"{i}.proj.bias"] = torch.randn(32).half()
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """A folder as model hubs lay it out."""
    folder.mkdir()
    metadata = {"format": "pt", "wlib_format_version": "1"}
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = names[i::shards]  # so that layers lie in several files
        safetensors.torch.save_file({n: tensors[n] for n in part}, folder / file, metadata)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, as the safetensors package reads it."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(path)
    return tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("shard_bytes", [10**9, 5000, 1])
def test_shards_in_and_out_hold_the_same_tensors(
    shards: int, shard_bytes: int, tmp_path: Path
) -> None:
    tensors = model()
    source = write(tmp_path / "in", tensors, shards)
    done = convert(source, tmp_path / "out", "wlib", shard_bytes=shard_bytes)
    out = tmp_path / "out"
    assert same(read(out), tensors)
    assert sorted(done.files) == sorted(file.name for file in out.glob("*.safetensors"))
    assert done.layers == len(Checkpoint(out).layers) == 3
    if shard_bytes == 10**9:
        assert done.files == ("model.safetensors",)
        return
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for name, file in index["weight_map"].items():
        assert name in safetensors.torch.load_file(out / file)
    assert index["weight_map"].keys() == tensors.keys()
    sizes = [Checkpoint(out / file).entries.values() for file in done.files]
    for entries in sizes:
        assert len(entries) == 1 or sum(entry.nbytes for entry in entries) <= shard_bytes
    assert done.files[0] == f"model-00001-of-{len(done.files):05}.safetensors"


def test_what_a_checkpoint_writes_can_be_converted_back(tmp_path: Path) -> None:
    tensors = model()
    source = write(tmp_path / "wlib", tensors)
    for name in ("gptq", "awq", "compressed-tensors", "wlib"):
        convert(source, tmp_path / f"{name}-again", name)
        source = tmp_path / f"{name}-again"
    assert same(read(source), tensors)


def test_companions_come_along_and_the_config_says_what_is_there(tmp_path: Path) -> None:
    source = write(tmp_path / "in", model(), shards=2)
    config = {"model_type": "llama", "quantization_config": {"quant_method": "wlib"}}
    config["quantization_config"]["format_version"] = 1
    (source / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "vocab.txt", "LICENSE", "quant_config.json"):
        (source / name).write_text(name)
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "original").mkdir()
    convert(source, tmp_path / "out", "compressed-tensors")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {"model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "LICENSE"}
    assert names == expected
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "llama"
    quantization = written["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["ignore"] == ["embed", "lm_head"]
    assert quantization["config_groups"]["group_0"]["weights"]["group_size"] == 64


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", model())
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupted(done: int, total: int, name: str) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "wlib", shard_bytes=1, progress=interrupted)
    tensors = model()
    tensors["2.proj.group_scale"] = torch.ones(32, 3).bfloat16()
    source = write(tmp_path / "bad", tensors)
    with pytest.raises(ValueError, match=r"2\.proj\.group_scale"):
        convert(source, tmp_path / "out", "wlib")

    def full(self: SafetensorsWriter, path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(SafetensorsWriter, "finish", full)
    with pytest.raises(OSError, match="no space"):
        convert(tmp_path / "in", tmp_path / "out", "wlib")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "bad"])


def test_a_target_is_replaced_only_if_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    old, new = model(1), model(2)
    out = tmp_path / "out"
    convert(write(tmp_path / "old", old), out, "wlib")
    source = write(tmp_path / "new", new)
    with pytest.raises(ValueError, match="does not exist, or force"):
        convert(source, out, "wlib")
    broken = write(tmp_path / "broken", new | {"1.proj.bias": torch.ones(31)})
    with pytest.raises(ValueError, match=r"1\.proj\.bias"):
        convert(broken, out, "wlib", force=True)
    assert same(read(out), old)
    convert(source, out, "wlib", force=True)
    assert same(read(out), new)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "new", "broken", "out"}


def test_force_deletes_nothing_but_checkpoints(tmp_path: Path) -> None:
    source = write(tmp_path / "in", model(1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(write(tmp_path / "other", model(1)))
    for name in ("photos", "file", "link", "in"):
        with pytest.raises(ValueError, match="argument 'target'"):
            convert(source, tmp_path / name, "wlib", force=True)
    with pytest.raises(ValueError, match="apart from the source"):
        convert(source, tmp_path, "wlib", force=True)
    with pytest.raises(ValueError, match="no folder"):
        convert(source, tmp_path / "none" / "out", "wlib")
    with pytest.raises(ValueError, match="wlib or compressed-tensors or gptq or awq or fireq"):
        convert(source, tmp_path / "out", "exl2")
    assert {p.name for p in tmp_path.iterdir()} == {"in", "other", "photos", "file", "link"}
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"
    assert (tmp_path / "link").is_symlink()


MEMORY = """
import sys
from pathlib import Path
from wlib.formats import convert

def kilobytes(name):
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1])

convert(sys.argv[1], sys.argv[2], "wlib")       # what a first run allocates once
Path("/proc/self/clear_refs").write_text("5")   # the peak starts anew
before = kilobytes("VmRSS")
convert(sys.argv[3], sys.argv[4], "gptq", shard_bytes=10**8)
print(kilobytes("VmHWM") - before)
"""


def test_memory_stays_far_below_the_size_of_the_model(tmp_path: Path) -> None:
    tensors = {}
    for i in range(32):
        tensors[f"{i}.proj.codes"] = torch.randint(0, 256, (2048, 2048), dtype=torch.uint8)
        tensors[f"{i}.proj.group_scale"] = torch.ones(2048, 32).bfloat16()
    source = write(tmp_path / "large", tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    paths = [write(tmp_path / "small", model()), tmp_path / "a", source, tmp_path / "b"]
    env = {**os.environ, "WLIB_LIBRARY": wlib.info().library}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, paths)],
        capture_output=True, text=True, check=True, cwd=ROOT / "python", env=env,
    )  # fmt: skip
    assert size > 138e6
    assert int(done.stdout) * 1024 < size / 3


def command(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["wlib", "convert", *map(str, args)])
    return main()


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in", model()), tmp_path / "out"
    assert command(monkeypatch, source, out, "--format", "gptq", "--shard-gb", "1e-5") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3 INT4 layers in 3 file(s)")
    assert printed.out.endswith("every scale was kept exactly\n")
    assert printed.err == ""
    assert Checkpoint(out).format.name == "gptq"
    assert command(monkeypatch, source, out, "--format", "awq") == 2
    assert "wlib convert: wlib.formats: expected a target" in capsys.readouterr().err
    assert command(monkeypatch, source, out, "--format", "awq", "--force") == 0
    assert Checkpoint(out).format.name == "awq"
    assert command(monkeypatch, tmp_path / "none", out, "--format", "awq", "--force") == 2
    with pytest.raises(SystemExit):
        command(monkeypatch, source, out, "--format", "exl2")
    tensors = model(1)
    tensors["0.proj.channel_scale"] = torch.rand(32) + 1
    source = write(tmp_path / "rounded", tensors)
    assert command(monkeypatch, source, out, "--format", "awq", "--force") == 0
    assert "largest rounding of a scale: 0.000" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_grows_on_a_terminal_only(tmp_path: Path) -> None:
    source, terminal, pipe = write(tmp_path / "in", model()), Terminal(), io.StringIO()
    seen: list[tuple[int, int]] = []
    bars = [ProgressBar(terminal), ProgressBar(pipe)]

    def progress(done: int, total: int, name: str) -> None:
        seen.append((done, total))
        for bar in bars:
            bar.show(done, total, name)

    convert(source, tmp_path / "out", "wlib", progress=progress)
    total = sum(tensor.nbytes for tensor in model().values())
    assert len(seen) == 12
    assert seen == sorted(seen)
    assert {t for _, t in seen} == {total}
    assert seen[-1][0] == total
    lines = terminal.getvalue().split("\r\x1b[K")[1:]
    assert len(lines) == 12
    hashes = [line.count("#") for line in lines]
    assert hashes == sorted(hashes)
    assert lines[-1].startswith("100% [########################]")
    for bar in bars:
        bar.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert pipe.getvalue() == ""
