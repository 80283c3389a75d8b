"""Mode block_scaled of fp4_matmul where there are no block-scaled tensor cores."""

import pytest
import torch

import wlib


def test_hopper_refuses_it() -> None:
    q = wlib.FP4Tensor(
        "mxfp4",
        torch.zeros(8, 32, dtype=torch.uint8, device="cuda"),
        torch.zeros(128, 4, dtype=torch.uint8, device="cuda"),
        swizzled=True,
    )
    text = r"no kernel for mode 'block_scaled' on compute capability 9.0 \(rows: cpu"
    with pytest.raises(NotImplementedError, match=text):
        wlib.fp4_matmul(q, q)
