"""What the arms that call another library have in common."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import ClassVar

import torch


class Peer:
    """Mixed into an arm: names the package it calls, which is imported by nothing but `prepare`.

    `least_sqnr_db` is a little below what the formats of the arm allow (see `Arm`).
    """

    package: ClassVar[str]  # what pip installs
    module: ClassVar[str]  # what Python imports
    needs_gpu: ClassVar[bool] = True

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Return why the arm cannot run on `device`, or None."""
        if find_spec(cls.module) is None:
            return f"not installed: pip install {cls.package}"
        return f"{cls.package} needs a GPU" if cls.needs_gpu and device.type == "cpu" else None

    @classmethod
    def version(cls) -> str:
        """Return the version of the package."""
        return f"{cls.package} {version(cls.package)}"
