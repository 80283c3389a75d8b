"""The documents: examples run, links lead somewhere, pages made from the code are up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import api_reference
import picture
from source_tree import ROOT

PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_the_examples_of_the_readme_run_one_after_the_other() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    examples = blocks("README.md", "python")
    assert len(examples) == 4  # one per family
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    y, out = names["y"], names["out"]
    assert isinstance(y, torch.Tensor)
    assert (y.shape, y.dtype) == ((16, 4096), torch.bfloat16)
    assert isinstance(out, torch.Tensor)
    assert out.shape == (100, 8, 128)
    assert out.isfinite().all()


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Those that need neither a checkpoint nor a GPU; the two of `make` are what CI runs."""
    shell = "".join(blocks("README.md", ""))
    commands = [line.partition("#")[0].split() for line in shell.splitlines() if line.strip()]
    python = [words for words in commands if words[:3] == ["python", "-m", "wlib"]]
    assert [words[3] for words in python] == ["info", "selftest", "bench", "convert"]
    for words in python[:2]:
        run = [sys.executable, *words[1:], *(["--seconds=1"] if words[3] == "selftest" else [])]
        done = subprocess.run(run, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [words for words in commands if words[0] == "make"] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not link.startswith(("http", "#")):
            target = (ROOT / page).parent / link.partition("#")[0]
            assert target.exists(), f"{page}: {link}"


def test_the_api_reference_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text() == api_reference.page(), "run `make docs`"


def test_the_picture_shows_what_the_library_stores() -> None:
    svg = picture.PICTURE.read_text()
    assert picture.bars() == pytest.approx(
        {
            "INT4 weights, groups of 128": 4224 / 16384,  # a tile of 64 x 128 with BF16 scales
            "INT4 keys and values, head_dim 128": 68 / 256,
            "FP4 operands kept for backward": 17 / 64,
            "12 layers from 4 shared atoms": 1 / 3,
        },
        rel=0.01,  # channel scales of the packed weight
    )
    for name, share in picture.bars().items():
        assert f"<!-- {name} -->" in svg
        assert f"<!-- {share:.3f} -->" in svg
