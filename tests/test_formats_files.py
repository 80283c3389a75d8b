"""Files that lie: nothing in a header or an index is believed before it is checked."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wlib.formats import Checkpoint
from wlib.formats.safetensors import DTYPES, SafetensorsFile, SafetensorsWriter

REFUSED = r"^wlib\.formats: expected .*, got .* \(argument '.*'\)$"
FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header, whatever it says, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: list[Any], dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def opened(path: Path, content: bytes) -> SafetensorsFile:
    path.write_bytes(content)
    return SafetensorsFile(path)


def test_every_dtype_is_read_as_the_safetensors_package_reads_it(tmp_path: Path) -> None:
    octets = torch.randint(0, 2, (6 * 8,), dtype=torch.uint8)
    tensors = {
        name: octets[: 6 * dtype.itemsize].clone().view(dtype).reshape(2, 3)
        for name, dtype in DTYPES.items()
    }
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "é": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"a": "b"})
    writer = SafetensorsWriter(tmp_path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish(tmp_path / "ours.safetensors", {"a": "b"})
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    for path in ("theirs.safetensors", "ours.safetensors"):
        file = SafetensorsFile(tmp_path / path)
        assert file.metadata == {"a": "b"}
        assert file.entries.keys() == tensors.keys() == theirs.keys()
        for name, tensor in tensors.items():
            assert file.entries[name].start % tensor.itemsize == 0
            for got in (file.read(name), theirs[name]):
                assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
                assert got.flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))


LIES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "length"),
    "seven bytes": (b"1234567", "length"),
    "length beyond the file": (raw({}, length=3), "length"),
    "huge length": (raw({}, length=2**64 - 1), "length"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "header"),
    "not JSON": (raw(b"{"), "header"),
    "deep": (raw(b"[" * 100_000), "header"),
    "long integer": (raw(b'{"a": ' + b"9" * 5000 + b"}"), "header"),
    "no object": (raw([]), "header"),
    "a name twice": (raw(b'{"a": 1, "a": 2}'), "header"),
    "lone surrogate": (raw(b'{"\\ud800": 1}'), "header"),
    "line break in a name": (raw({"a\nb": entry(0, 1, [1])}, b"1"), "header"),
    "metadata no object": (raw({"__metadata__": 3}), "__metadata__"),
    "metadata no strings": (raw({"__metadata__": {"a": 3}}), "__metadata__"),
    "entry no object": (raw({"w": 3}), "w"),
    "field missing": (raw({"w": {"dtype": "U8", "shape": [1]}}, b"1"), "w"),
    "field too many": (raw({"w": entry(0, 1, [1]) | {"x": 1}}, b"1"), "w"),
    "unknown dtype": (raw({"w": entry(0, 1, [1], "U3")}, b"1"), "w"),
    "dtype a list": (raw({"w": entry(0, 1, [1], [])}, b"1"), "w"),
    "negative size": (raw({"w": entry(0, 1, [-1, -1])}, b"1"), "w"),
    "size a float": (raw({"w": entry(0, 1, [1.0])}, b"1"), "w"),
    "size a bool": (raw({"w": entry(0, 1, [True])}, b"1"), "w"),
    "sizes that overflow": (raw({"w": entry(0, 0, [2**32, 2**32])}), "w"),
    "huge size": (raw({"w": entry(0, 0, [2**64, 0])}), "w"),
    "shape no list": (raw({"w": entry(0, 1, "1")}, b"1"), "w"),  # type: ignore[arg-type]
    "offsets backwards": (raw({"w": entry(1, 0, [1])}, b"1"), "w"),
    "offsets negative": (raw({"w": entry(-1, 0, [1])}, b"1"), "w"),
    "three offsets": (raw({"w": entry(0, 1, [1]) | {"data_offsets": [0, 1, 1]}}, b"1"), "w"),
    "bytes too few for the shape": (raw({"w": entry(0, 1, [2])}, b"1"), "w"),
    "bytes too many for the dtype": (raw({"w": entry(0, 4, [1], "F16")}, b"1234"), "w"),
    "outside the file": (raw({"w": entry(0, 2, [2])}, b"1"), "file size"),
    "far outside the file": (raw({"w": entry(2**40, 2**40 + 1, [1])}, b"1"), "w"),
    "overlap": (raw({"v": entry(0, 2, [2]), "w": entry(1, 3, [2])}, b"123"), "w"),
    "the same bytes twice": (raw({"v": entry(0, 1, [1]), "w": entry(0, 1, [1])}, b"1"), "w"),
    "hole in front": (raw({"w": entry(1, 2, [1])}, b"12"), "w"),
    "hole between": (raw({"v": entry(0, 1, [1]), "w": entry(2, 3, [1])}, b"123"), "w"),
    "bytes behind": (raw({"w": entry(0, 1, [1])}, b"12"), "file size"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers_are_refused_by_name(lie: str, tmp_path: Path) -> None:
    content, what = LIES[lie]
    with pytest.raises(ValueError, match=REFUSED) as error:
        opened(tmp_path / "f.safetensors", content)
    assert str(error.value).endswith(f"(argument 'f.safetensors: {what}')")


def test_the_headers_around_the_lies_are_fine(tmp_path: Path) -> None:
    file = opened(
        tmp_path / "f", raw({"v": entry(0, 1, [1]), "w": entry(1, 3, [1], "I16")}, b"\1\2\3")
    )
    assert file.read("v").tolist() == [1]
    assert file.read("w").tolist() == [0x0302]


def small_file(folder: Path) -> bytes:
    path = folder / "small.safetensors"
    tensors = {"a.w": torch.randn(3, 4), "b": torch.arange(5), "c": torch.ones(2).bfloat16()}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = small_file(tmp_path)
    for size in range(len(content)):
        with pytest.raises(ValueError, match=REFUSED):
            opened(tmp_path / "f.safetensors", content[:size])


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    file = opened(path, small_file(tmp_path))
    name = list(file.entries)[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"bytes \(argument 'f.safetensors: {name}'\)"):
        file.read(name)


def sound(file: SafetensorsFile, size: int) -> None:
    """What was accepted lies within the file, once, and can be read as it says."""
    position = 0
    for name, found in sorted(file.entries.items(), key=lambda item: item[1].start):
        assert position <= found.start <= found.stop <= size
        position = found.stop
        assert list(file.read(name).shape) == list(found.shape)


@FUZZ
@given(st.integers(0, 2**32))
def test_damaged_files_are_refused_or_sound(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(small_file(tmp_path))
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) - 40)  # the header, mostly
        if draw.random() < 0.5:
            content[at] = draw.choice(b'0123456789-{}[],:".eFIU\0\xff')
        elif draw.random() < 0.5:
            del content[at : at + draw.randint(1, 9)]
        else:
            content[at:at] = content[at : at + draw.randint(1, 9)]
    path = tmp_path / "f.safetensors"
    try:
        file = opened(path, bytes(content))
    except ValueError as error:
        assert str(error).startswith("wlib.formats: expected ")  # noqa: PT017
    else:
        sound(file, len(content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
sizes = st.integers(-2, 9) | st.integers(2**31, 2**66) | json_values
header_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F64", "X"]) | json_values,
        "shape": st.lists(sizes, max_size=3) | json_values,
        "data_offsets": st.lists(sizes, min_size=1, max_size=3) | json_values,
    }
)


@FUZZ
@given(st.dictionaries(st.text(max_size=3), header_entries | json_values), st.binary(max_size=30))
def test_invented_headers_are_refused_or_sound(
    tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    content = raw(header, data)
    try:
        file = opened(tmp_path / "f.safetensors", content)
    except ValueError as error:
        assert str(error).startswith("wlib.formats: expected ")  # noqa: PT017
    else:
        sound(file, len(content))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_never_opened(suffix: str, tmp_path: Path) -> None:
    pickle = tmp_path / f"pytorch_model{suffix}"
    pickle.mkdir()  # opening it would raise another error
    with pytest.raises(ValueError, match=rf"pickles can run code.*pytorch_model\{suffix}"):
        Checkpoint(pickle)
    with pytest.raises(ValueError, match=rf"pickles can run code.*pytorch_model\{suffix}"):
        Checkpoint(tmp_path)


def test_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=REFUSED):
        Checkpoint(tmp_path)


def index(folder: Path, weight_map: object) -> Path:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("weight_map", "argument"),
    [
        (3, "weight_map"),
        ({}, "weight_map"),
        ({"a": 3}, "a"),
        ({"a": "../one.safetensors"}, "a"),
        ({"a": "sub\\\\one.safetensors"}, "a"),
        ({"a": "one.bin"}, "a"),
        ({"a": "none.safetensors"}, "model.safetensors.index.json"),
        ({"a": "one.safetensors"}, "b"),
        ({"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}, "c"),
    ],
)
def test_an_index_must_match_its_files(weight_map: object, argument: str, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1), "b": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=REFUSED) as error:
        Checkpoint(index(tmp_path, weight_map))
    assert str(error.value).endswith(f"{argument}')")
    complete = index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    assert Checkpoint(complete).entries.keys() == tensors.keys()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors, two\.safetensors"):
        Checkpoint(tmp_path)
    with pytest.raises(ValueError, match=REFUSED):
        Checkpoint(index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
