"""The example that merges adapters into a real encoder."""

from __future__ import annotations

import pytest
import torch

from example_modules import example


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "LOKR"])
def test_merging_into_real_weights(kind: str) -> None:
    merging = example("merge_adapters")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    row = merging.merge(kind, rank=4, device="cpu")
    torch.set_num_threads(threads)
    assert row.layers == 36
    assert row.restored
    assert 0.49 < row.error < 0.51  # one rounding of every sum
    assert row.error_one_by_one > 0.6  # the delta's rounding on top
    assert merging.table([row], "cpu").row_count == 1
