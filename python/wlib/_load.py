"""Finds and loads the one compiled library, which registers ``torch.ops.wlib``."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from . import __path__ as _package_folders  # two of an editable install: sources and library

_NAME = "_C.so"


def library_path() -> Path:
    """Path of the library: ``$WLIB_LIBRARY``, the installed one, or the source tree's build.

    Raises:
        ImportError: none of the places holds a library.
    """
    chosen = os.environ.get("WLIB_LIBRARY")
    installed = [Path(folder) / _NAME for folder in _package_folders]
    built = Path(__file__).resolve().parents[2] / "build" / "dev" / _NAME
    places = [Path(chosen)] if chosen else [*installed, built]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(map(str, places))
    raise ImportError(
        f"wlib's compiled library is missing (looked at {looked}); build it with `make build`"
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        ImportError: another copy of wlib has already registered the ops in this process.
    """
    path = library_path()
    if hasattr(torch.ops.wlib, "int4fp8_gemm"):
        raise ImportError(
            f"another wlib library is loaded already, {path} cannot join it: uninstall one"
        )
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def text(function: str) -> str:
    """What one of the library's ``const char*`` functions returns."""
    call = getattr(library(), function)
    call.restype = ctypes.c_char_p
    value: bytes = call()
    return value.decode()


library()
