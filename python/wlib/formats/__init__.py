"""Checkpoints and adapters: load, convert, save and merge.

`Checkpoint` reads INT4 models, compressed-tensors, GPTQ, AWQ, FireQ and wlib's own safetensors,
layer by layer; `load_model` fills a model from them, and `convert` writes any of them as any other.
`load_adapter` reads adapters of PEFT, LyCORIS, kohya's scripts and FLoRA, `merge_adapter` adds one
to a model. Files are checked before they are believed, and pickles are never opened.
"""

from .adapter import Adapter, load_adapter
from .checkpoint import FORMATS, Checkpoint
from .convert import Conversion, convert
from .delta import LohaDelta, LokrDelta, LoraDelta, TuckerDelta
from .layer import Int4Layer
from .merge import Merged, merge_adapter
from .model import load_model

__all__ = [
    "FORMATS",
    "Adapter",
    "Checkpoint",
    "Conversion",
    "Int4Layer",
    "LohaDelta",
    "LokrDelta",
    "LoraDelta",
    "Merged",
    "TuckerDelta",
    "convert",
    "load_adapter",
    "load_model",
    "merge_adapter",
]
