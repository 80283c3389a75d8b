"""Argument checks and the error classes behind the library's one message form.

Every refused argument reads `wlib::op: expected <what>, got <what came> (argument 'name')`. Values,
shapes and devices raise ValueError, dtypes TypeError, and a device no kernel serves
NotImplementedError. The C++ ops can throw ValueError only; `typed_error` finds the class the
message asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def refuse(
    where: str, expected: str, got: object, argument: str, kind: type[Exception] = ValueError
) -> NoReturn:
    """Raise `kind` with the library's message form."""
    raise kind(f"{where}: expected {expected}, got {got} (argument '{argument}')")


def check_dtype(where: str, argument: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raise TypeError unless `tensor` is a tensor of one of the allowed dtypes."""
    names = " or ".join(map(str, allowed))
    if not isinstance(tensor, Tensor):
        refuse(where, f"{argument} to be a tensor", type(tensor).__name__, argument, TypeError)
    if tensor.dtype not in allowed:
        refuse(where, f"{argument} of dtype {names}", tensor.dtype, argument, TypeError)


def check_shape(where: str, argument: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless `tensor` has exactly this shape."""
    if list(tensor.shape) != list(shape):
        refuse(where, f"{argument} of shape {list(shape)}", list(tensor.shape), argument)


def check_device(where: str, argument: str, tensor: Tensor, device: torch.device) -> None:
    """Raise ValueError unless `tensor` lives on `device`."""
    if tensor.device != device:
        refuse(where, f"{argument} on {device}", tensor.device, argument)


def typed_error(error: ValueError) -> Exception:
    """The exception a refusal by a C++ op stands for: same message, the class of its kind."""
    message = str(error)
    if " of dtype " in message:
        return TypeError(message)
    if "no kernel for" in message:
        return NotImplementedError(message)
    return error
