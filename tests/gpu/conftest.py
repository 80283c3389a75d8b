"""Everything here needs an sm_90 GPU and is skipped without one.

With WLIB_REQUIRE_GPU=1 a missing GPU is an error instead, so that nothing passes by skipping.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wlib._load import text

HERE = Path(__file__).parent


def missing() -> str | None:
    """Why the kernels cannot run here, or None."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability()[0] != 9:
        return f"{torch.cuda.get_device_name()} is not an sm_90 GPU"
    if not text("wlib_int4fp8_gemm_rows"):
        return "wlib was built without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    if reason and os.environ.get("WLIB_REQUIRE_GPU") == "1":
        raise pytest.UsageError(f"WLIB_REQUIRE_GPU=1, but {reason}")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"needs an sm_90 GPU: {reason}"))


@pytest.fixture(autouse=True)
def _device_still_works() -> Iterator[None]:
    """Lets an asynchronous CUDA error fail the test that caused it, not a later one."""
    yield
    torch.cuda.synchronize()
