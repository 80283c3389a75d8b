"""INT4 checkpoints: load, convert and save.

`Checkpoint` reads compressed-tensors, GPTQ, AWQ, FireQ and wlib's own safetensors layer by layer;
`load_model` fills a model from them, and
`convert` writes any of them as any other. Files are checked before they are believed, and pickles
are never opened.
"""

from .checkpoint import FORMATS, Checkpoint
from .convert import Conversion, convert
from .layer import Int4Layer
from .model import load_model

__all__ = ["FORMATS", "Checkpoint", "Conversion", "Int4Layer", "convert", "load_model"]
