"""Everything here needs an sm_90 GPU; tests/conftest.py skips it without one."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device_still_works() -> Iterator[None]:
    """Lets an asynchronous CUDA error fail the test that caused it, not a later one."""
    yield
    torch.cuda.synchronize()
