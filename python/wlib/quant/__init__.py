"""Quantisers: from a model's floating-point weights to INT4, with or without calibration data."""

from ..group_scale import ScaleUnderflowWarning
from .channels import LLAMA_FOLDS, Fold
from .model import quantize_model
from .recipe import Recipe
from .report import LayerReport, Report
from .rope import key_factors, smooth_keys
from .weight import quantize_weight

__all__ = [
    "LLAMA_FOLDS",
    "Fold",
    "LayerReport",
    "Recipe",
    "Report",
    "ScaleUnderflowWarning",
    "key_factors",
    "quantize_model",
    "quantize_weight",
    "smooth_keys",
]
