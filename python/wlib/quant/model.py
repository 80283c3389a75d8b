"""A model's linear layers, quantised in the order they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from .. import layout
from ..errors import refuse
from ..nn import Int4Fp8Linear
from ..nn.replace import matches
from ..quantizer import fp8_quantize
from .calibration import Batch, layer_inputs, linear_layer, stages
from .channels import LLAMA_FOLDS, Fold, scale_channels
from .moments import Moments
from .recipe import Recipe
from .report import LayerReport, Report, decibels
from .weight import quantize_weight

_NAME = "wlib.quant.quantize_model"
_SAMPLE = 512  # tokens on which output errors are measured


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    recipe: Recipe | None = None,
    calibration: Sequence[Batch] | None = None,
    *,
    folds: Sequence[Fold] = LLAMA_FOLDS,
    progress: bool = False,
) -> Report:
    """Replace the linear layers of a model by `Int4Fp8Linear`, in place.

    With calibration the layers are quantised in the order they are called, each on the inputs
    that the layers already quantised, and FP8 activations, give it. Where there is a bias, it
    takes up the mean error of the output. The model runs in evaluation mode meanwhile.

    Args:
        model: any module with `nn.Linear` layers; subclasses of nn.Linear are left alone.
        recipe: default `Recipe()`, which rounds to nearest.
        calibration: batches of model inputs: a tensor, a sequence of positional arguments or a
            mapping of keyword arguments each, on the model's device, without padding or with an
            "attention_mask" in the mapping.
        folds: where `channel_scaling` may put its factors; the names of Llama-type models
            unless given.
        progress: show a progress bar, if `rich` is installed.

    Returns:
        The weight error and, with calibration, the output error of each layer.

    Raises:
        ValueError: a layer does not fit the recipe, which needs calibration it lacks or folds the
            model does not have; or a layer's weight or inputs are not finite. Except for inputs
            and folds this is found before the model is changed.
    """
    recipe = recipe or Recipe()
    batches = list(calibration or ())
    layers = _layers(model, recipe)
    if recipe.needs_calibration and not batches:
        refuse(_NAME, "batches for gptq and awq", calibration, "calibration")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if recipe.channel_scaling != "none":
            scale_channels(model, layers, recipe, folds, batches)
        order = stages(model, layers, batches[0]) if batches else []
        called = {name for stage in order for name in stage}
        # Nothing is known about the inputs of layers that the first batch does not reach.
        rest = [[name] for name in layers if name not in called]
        rows = []
        for stage in _track([*order, *rest], progress):
            if stage[0] in called:
                seen = _look(model, stage[0], batches)
                rows += [_quantize(model, name, recipe, *seen) for name in stage]
            else:
                rows.append(_quantize(model, stage[0], recipe.data_free))
    finally:
        for module, training in modes.items():
            module.training = training
    return Report(tuple(rows))


def _layers(model: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the layers to quantise, each module once; refuses what cannot be quantised."""
    names = []
    refused = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or matches(name, recipe.skip):
            continue
        names.append(name)
        try:
            layout.check_group_size(name, module.in_features, recipe.group_size)
        except ValueError as error:
            refused.append(str(error))
        if not module.weight.isfinite().all():
            refused.append(f"{name}: expected finite weights, got NaN or Inf")
    if refused:
        lines = "".join(f"\n  {line}" for line in refused)
        raise ValueError(f"{_NAME}: name these layers in skip or change the recipe:{lines}")
    return names


def _track(items: list[list[str]], show: bool) -> Iterable[list[str]]:
    if not show or find_spec("rich") is None:
        return items
    from rich.progress import track

    return track(items, "quantising")


def _look(model: nn.Module, name: str, batches: Sequence[Batch]) -> tuple[Moments, Tensor]:
    """Moments of the FP8 inputs of a layer, and a sample of the inputs [T, K]."""
    layer = linear_layer(model, name)
    moments = Moments(layer.in_features, layer.weight.device)
    share = -(-_SAMPLE // len(batches))
    sample = []
    for x in layer_inputs(model, name, batches):
        xq, scale = fp8_quantize(x.contiguous())
        moments.add(xq.float() * scale[:, None])
        sample.append(x[:share])
    if not moments.mean.isfinite().all():
        refuse(_NAME, f"finite inputs of {name}", "NaN or Inf", "calibration")
    return moments, torch.cat(sample)


def _quantize(
    model: nn.Module,
    name: str,
    recipe: Recipe,
    moments: Moments | None = None,
    sample: Tensor | None = None,
) -> LayerReport:
    """Quantise one layer, put it in the place of all its names, and compare the two."""
    linear = linear_layer(model, name)
    weight = quantize_weight(linear.weight, recipe, moments, centred=linear.bias is not None)
    error = weight.dequantize() - linear.weight
    bias: Tensor | None = linear.bias
    if moments is not None and bias is not None:
        bias = (bias - error.double() @ moments.mean).float()
    quantized = Int4Fp8Linear.from_weight(weight, bias)
    output_sqnr = None
    if sample is not None:
        exact = linear(sample).float()
        output_sqnr = decibels(exact, quantized(sample).float() - exact)
    for other, module in list(model.named_modules(remove_duplicate=False)):
        if module is linear:
            model.set_submodule(other, quantized)
    return LayerReport(
        name,
        weight.n,
        weight.k,
        float(error.double().square().mean()),
        decibels(linear.weight, error),
        output_sqnr,
    )
