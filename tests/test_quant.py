"""Quantising one weight: scale rules and formats, error feedback, recipes."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor

from wlib import Int4Weight
from wlib.group_scale import ScaleGrid, choose_scale, round_codes
from wlib.quant import Recipe, ScaleUnderflowWarning, quantize_weight
from wlib.quant.gptq import _least_squares_scale, error_feedback, refine
from wlib.quant.moments import Metric, Moments
from wlib.reference.int4fp8 import decode_e4m3

E4M3 = decode_e4m3(torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn))
FORMATS = ["bf16", "fp16", "fp32", "e4m3"]


def correlated_inputs(tokens: int, k: int) -> Tensor:
    """Inputs [tokens, K] of a few directions, unequal channels and a mean."""
    latent = torch.randn(tokens, k // 4, dtype=torch.float64)
    mixed = latent @ torch.randn(k // 4, k, dtype=torch.float64) / k**0.5
    noise = torch.randn(tokens, k, dtype=torch.float64)
    channel = torch.logspace(-1, 1, k, dtype=torch.float64)[torch.randperm(k)]
    return (mixed + 0.2 * noise + 0.5) * channel


def moments_of(x: Tensor) -> Moments:
    moments = Moments(x.shape[1], x.device)
    for part in x.split(100):
        moments.add(part)
    return moments


def errors(weight: Int4Weight, w: Tensor) -> Tensor:
    """Squared error of each group, float64 [N, K/G]."""
    difference = weight.dequantize().double() - w.double()
    return difference.square().view(weight.n, -1, weight.group_size).sum(dim=2)


@pytest.mark.parametrize(
    ("rule", "divisor"), [("absmax/8", 8), ("absmax/7.5", 7.5), ("absmax/7", 7)]
)
def test_rules_divide_the_absmax(rule: str, divisor: float) -> None:
    w = torch.randn(16, 256)
    weight = quantize_weight(w, Recipe(scale_rule=rule))
    absmax = w.view(16, 2, 128).abs().amax(dim=2)
    assert torch.equal(weight.group_scale, (absmax / divisor).bfloat16())
    scale = weight.group_scale.double()[..., None]
    nearest = (w.double().view(16, 2, 128) / scale).round().clamp(-8, 7) * scale
    torch.testing.assert_close(weight.dequantize().double(), nearest.view(16, 256))


def test_absmax_over_7_clips_nothing() -> None:
    w = torch.randn(64, 256)
    weight = quantize_weight(w, Recipe(scale_rule="absmax/7"))
    step = weight.group_scale.double().repeat_interleave(128, dim=1)
    # BF16 may round the scale down by 2^-8, which the largest weight, 7 steps, overshoots.
    assert ((weight.dequantize() - w).abs() <= step * (0.5 + 7 * 2**-8)).all()


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("group_size", [64, 128, 384])
def test_search_beats_every_rule_in_every_group(scale_format: str, group_size: int) -> None:
    w = torch.randn(32, 384) * torch.randn(32, 1).exp()
    options = {"group_size": group_size, "scale_format": scale_format}
    searched = errors(quantize_weight(w, Recipe(scale_rule="mse", **options)), w)
    for rule in ("absmax/8", "absmax/7.5", "absmax/7"):
        ruled = errors(quantize_weight(w, Recipe(scale_rule=rule, **options)), w)
        assert (searched <= ruled * (1 + 1e-5)).all()
        assert searched.sum() < 0.97 * ruled.sum()


def test_clip_search_of_int4weight_is_the_same_search() -> None:
    w = torch.randn(32, 384)
    mine = quantize_weight(w, Recipe(scale_rule="mse"))
    theirs = Int4Weight.quantize(w, clip_search=True)
    assert torch.equal(mine.codes, theirs.codes)
    assert torch.equal(mine.group_scale, theirs.group_scale)


def test_search_weighs_errors_by_the_second_moments() -> None:
    w = torch.randn(32, 128)
    x = torch.randn(500, 128).double() * torch.logspace(-2, 2, 128, dtype=torch.float64)
    moments = moments_of(x)
    weighed = quantize_weight(w, Recipe(), moments).dequantize().double() - w
    plain = quantize_weight(w, Recipe()).dequantize().double() - w
    diagonal = x.square().mean(dim=0)
    assert ((weighed.square() @ diagonal) <= (plain.square() @ diagonal) * (1 + 1e-5)).all()
    assert (weighed.square() @ diagonal).sum() < 0.8 * (plain.square() @ diagonal).sum()


@pytest.mark.parametrize("group_size", [64, 256])
@pytest.mark.parametrize("scale_format", FORMATS)
def test_scales_are_values_of_their_format(scale_format: str, group_size: int) -> None:
    w = torch.randn(24, 256) * torch.randn(24, 1).exp()
    weight = quantize_weight(w, Recipe(group_size, scale_format=scale_format))
    scale = weight.group_scale.double()
    if weight.channel_scale is not None:
        scale = scale * weight.channel_scale.double()[:, None]
    if scale_format == "e4m3":
        assert torch.isin(weight.group_scale.double(), E4M3).all()
    elif scale_format == "fp16":
        assert torch.equal(scale.half().double(), scale)
    else:
        assert torch.equal(scale.float().double(), scale)
    one_per_row = group_size == 256 and scale_format in ("fp16", "fp32")
    bf16 = torch.equal(scale.bfloat16().double(), scale)
    assert bf16 != (one_per_row or scale_format == "e4m3")


def test_one_scale_per_row_keeps_its_format_exactly() -> None:
    w = torch.randn(24, 256)
    absmax = w.abs().amax(dim=1)
    for scale_format, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        recipe = Recipe(256, scale_rule="absmax/8", scale_format=scale_format)
        weight = quantize_weight(w, recipe)
        assert torch.equal(weight.channel_scale, (absmax / 8).to(dtype).float())
        assert (weight.group_scale == 1).all()


def test_fp16_grid_is_exact_in_bf16_and_fp16_over_the_whole_range() -> None:
    scale = torch.logspace(-9, 6, 20001)[None]
    grid = ScaleGrid("fp16", None, per_row=False)
    rounded = grid.round(scale)
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert torch.equal(rounded.half().float(), rounded)
    normal = (scale > 2**-14) & (scale < 65280)
    assert ((rounded / scale - 1).abs()[normal] <= 2**-8 + 2**-11).all()


def test_scales_beyond_a_format_saturate() -> None:
    beyond = torch.tensor([[1e30]])
    for scale_format, largest in (("e4m3", 448.0), ("fp16", 65280.0)):
        assert ScaleGrid(scale_format, None, per_row=False).round(beyond) == largest


@pytest.mark.parametrize("outer", ["channel", "tensor"])
def test_outer_scales_keep_e4m3_out_of_its_subnormals(outer: str) -> None:
    w = torch.randn(64, 512) * 0.02 * torch.logspace(-0.3, 0.3, 64)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = Recipe(scale_rule="absmax/8", scale_format="e4m3", outer_scale=outer)
        weight = quantize_weight(w, recipe)
    scales = weight.group_scale.double()
    assert scales.min() >= 2**-6
    assert 8 * scales.max() <= 448
    exact = w.view(64, 4, 128).abs().amax(dim=2).double() / 8
    ratio = scales * weight.channel_scale.double()[:, None] / exact
    assert (ratio - 1).abs().max() <= 2**-4 * 1.001  # half a step of three mantissa bits
    if outer == "tensor":
        factor = weight.channel_scale.unique()
        assert len(factor) == 1
        assert torch.frexp(factor).mantissa == 0.5
        # The smallest power of two that will do, as FireQ searches it.
        assert (exact / (2 * factor.double())).min() < 2**-6
    else:
        torch.testing.assert_close(scales.amax(dim=1), torch.full((64,), 56.0).double())


def test_the_tensor_scale_stops_where_products_would_leave_e4m3() -> None:
    w = torch.randn(2, 256)
    w[0] *= 1e5
    recipe = Recipe(scale_rule="absmax/8", scale_format="e4m3", outer_scale="tensor")
    with pytest.warns(ScaleUnderflowWarning, match=r"2 of 4 group scales fall below 2\^-6"):
        weight = quantize_weight(w, recipe)
    assert 28 < weight.group_scale[0].max() <= 56
    assert (weight.group_scale[1] < 2**-6).all()


def test_scales_that_underflow_are_warned_of() -> None:
    w = torch.randn(4, 256)
    cases = (("e4m3", 1e-3, "2^-6"), ("fp16", 1e-5, "2^-14"), ("bf16", 1e-38, "2^-126"))
    for scale_format, size, limit in cases:
        recipe = Recipe(scale_format=scale_format, outer_scale="none")
        with pytest.warns(ScaleUnderflowWarning) as seen:
            quantize_weight(w * size, recipe)
        assert f"8 of 8 group scales fall below {limit}, the smallest" in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_weight(torch.zeros(4, 256), Recipe(scale_format="e4m3"))


@pytest.mark.parametrize("scale_format", FORMATS)
def test_zero_groups_and_rows_stay_zero(scale_format: str) -> None:
    w = torch.randn(8, 256)
    w[2] = 0
    w[3, :128] = 0
    moments = moments_of(correlated_inputs(300, 256))
    for rounding in ("nearest", "gptq"):
        recipe = Recipe(scale_format=scale_format, rounding=rounding)
        dequantized = quantize_weight(w, recipe, moments).dequantize()
        assert dequantized.isfinite().all()
        assert not dequantized[2].any()


def test_moments_are_those_of_all_inputs() -> None:
    x = correlated_inputs(350, 64)
    moments = moments_of(x)
    torch.testing.assert_close(moments.mean, x.mean(dim=0))
    torch.testing.assert_close(moments.second(False), x.T @ x / 350)
    centred = x - x.mean(dim=0)
    torch.testing.assert_close(moments.second(True), centred.T @ centred / 350)
    metric = moments.metric(False, 1e-3)
    inverse = metric.factor.double().T @ metric.factor.double()
    torch.testing.assert_close(inverse @ metric.h, torch.eye(64).double(), rtol=0, atol=1e-3)
    assert not metric.factor.tril(-1).any()
    moments.add(10 * x)
    assert moments.metric(False, 1e-3).h.trace() > 2 * metric.h.trace()


def test_metric_measures_the_output_error() -> None:
    x = correlated_inputs(400, 96)
    metric = moments_of(x).metric(False, 1e-12)
    change = torch.randn(5, 96)
    expected = (x @ change.double().T).square().mean(dim=0)
    torch.testing.assert_close(metric.error(change), expected, rtol=1e-6, atol=0)


def test_inputs_of_zeros_are_no_error() -> None:
    moments = moments_of(torch.zeros(50, 128))
    w = torch.randn(8, 128)
    weight = quantize_weight(w, Recipe(rounding="gptq"), moments)
    assert errors(weight, w).sum() <= errors(quantize_weight(w, Recipe()), w).sum() * 1.01


@pytest.mark.parametrize(("k", "group_size"), [(96, 32), (160, 160), (384, 128), (512, 256)])
def test_error_feedback_follows_the_definition(k: int, group_size: int) -> None:
    """Blocks and lazy updates give what one column after the other gives, in float64."""
    w = torch.randn(12, k)
    metric = moments_of(correlated_inputs(2 * k, k)).metric(False, 0.05)
    absmax = w.view(12, -1, group_size).abs().amax(dim=2)
    grid = ScaleGrid.fit(absmax)
    codes, scale = error_feedback(w, metric, "absmax/8", grid, group_size)
    left, inverse = w.double(), torch.linalg.inv(metric.h)
    for j in range(k):
        if j % group_size == 0:
            expected = left[:, j : j + group_size].abs().amax(dim=1) / 8
            step = scale[:, j // group_size].double()
            torch.testing.assert_close(step, expected, rtol=2**-8, atol=0)
        code = (left[:, j] / step).round().clamp(-8, 7)
        # Roundings of float32 may turn over what lies on the edge between two codes.
        assert (code == codes[:, j]).double().mean() >= 0.9
        change = (left[:, j] - codes[:, j].double() * step) / inverse[0, 0]
        left[:, j:] -= change[:, None] * inverse[0]
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]


def test_error_feedback_lowers_the_output_error() -> None:
    x = correlated_inputs(2000, 256)
    w = torch.randn(64, 256)
    moments = moments_of(x)
    held_out = correlated_inputs_like(x)

    def output_error(recipe: Recipe) -> float:
        change = quantize_weight(w, recipe, moments).dequantize().double() - w
        return float((held_out @ change.T).square().sum())

    nearest = output_error(Recipe())
    plain = output_error(Recipe(rounding="gptq", refinements=0))
    refined = output_error(Recipe(rounding="gptq"))
    assert plain < 0.5 * nearest
    assert refined < 0.97 * plain


def correlated_inputs_like(x: Tensor) -> Tensor:
    """Fresh inputs with the second moments of x."""
    factor = torch.linalg.cholesky(x.T @ x / len(x) + 1e-9 * torch.eye(x.shape[1]))
    return torch.randn(1000, x.shape[1], dtype=torch.float64) @ factor.T


def test_refitted_scales_are_those_of_least_squares() -> None:
    w = torch.randn(6, 128) + 1
    metric = moments_of(correlated_inputs(300, 128)).metric(False, 0.05)
    codes = w.mul(4).round().clamp(-8, 7)
    scales = _least_squares_scale(w, metric, codes, 4)
    root = torch.linalg.cholesky(metric.h)
    for row in range(6):
        columns = torch.block_diag(*codes[row].double().view(4, 1, 32))  # [groups, K]
        exact = torch.linalg.lstsq((columns @ root).T, (w[row].double() @ root)[:, None]).solution
        assert exact.min() > 0
        torch.testing.assert_close(scales[row].double(), exact[:, 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale_format", ["bf16", "e4m3"])
def test_refinement_never_makes_a_row_worse(scale_format: str) -> None:
    w = torch.randn(48, 384)
    metric = moments_of(correlated_inputs(900, 384)).metric(True, 0.01)
    groups = w.view(48, 3, 128)
    grid = ScaleGrid.fit(groups.abs().amax(dim=2), scale_format)
    scale = choose_scale(groups, "absmax/8", grid)
    codes = round_codes(groups, scale[..., None]).view(48, 384)
    last = metric.error(w - codes * scale.repeat_interleave(128, dim=1))
    for _ in range(3):
        codes, scale = refine(w, metric, codes, scale, grid)
        assert torch.equal(grid.round(scale), scale)
        assert torch.equal(codes, codes.round().clamp(-8, 7))
        error = metric.error(w - codes * scale.repeat_interleave(128, dim=1))
        assert (error <= last * (1 + 1e-5)).all()
        last = error
    # At a fixed point no single code can be changed for the better.
    step = scale.repeat_interleave(128, dim=1)
    for _ in range(20):
        codes, scale = refine(w, metric, codes, scale, grid)
    step = scale.repeat_interleave(128, dim=1)
    best = metric.error(w - codes * step)
    for j, change in itertools.product(range(0, 384, 37), (-1, 1)):
        other = codes.clone()
        other[:, j] = (other[:, j] + change).clamp(-8, 7)
        assert (metric.error(w - other * step) >= best * (1 - 1e-4)).all()


class CoarseGrid(ScaleGrid):
    """Powers of two."""

    def round(self, scale: Tensor) -> Tensor:
        return torch.exp2(torch.log2(scale).ceil())


def test_scales_that_a_coarse_grid_makes_worse_stay() -> None:
    w = torch.randn(48, 256)
    metric = moments_of(correlated_inputs(900, 256)).metric(False, 0.01)
    scale = w.view(48, 2, 128).abs().amax(dim=2) / 8
    step = scale.repeat_interleave(128, dim=1)
    codes = round_codes(w, step)
    after = refine(w, metric, codes, scale, CoarseGrid("bf16", None, per_row=False))
    error = metric.error(w - after[0] * after[1].repeat_interleave(128, dim=1))
    assert (error <= metric.error(w - codes * step) * (1 + 1e-5)).all()


def test_the_metric_of_a_bias_ignores_the_mean() -> None:
    x = correlated_inputs(500, 128)
    w = torch.randn(16, 128)
    recipe = Recipe(rounding="gptq")
    near = quantize_weight(w, recipe, moments_of(x), centred=True)
    far = quantize_weight(w, recipe, moments_of(x + 3), centred=True)
    torch.testing.assert_close(near.dequantize(), far.dequantize())
    other = quantize_weight(w, recipe, moments_of(x + 3), centred=False)
    assert not torch.equal(other.codes, far.codes)


def test_bits_do_not_depend_on_any_random_state() -> None:
    w, x = torch.randn(32, 256), correlated_inputs(300, 256)
    first = quantize_weight(w, Recipe(rounding="gptq"), moments_of(x))
    torch.manual_seed(123)
    second = quantize_weight(w, Recipe(rounding="gptq"), moments_of(x))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.group_scale, second.group_scale)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_rule", "absmax"),
        ("scale_format", "fp8"),
        ("outer_scale", "row"),
        ("channel_scaling", "max"),
        ("rounding", "stochastic"),
        ("damping", 0.0),
        ("refinements", -1),
    ],
)
def test_recipes_refuse_what_they_do_not_know(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"wlib.quant.Recipe: expected {field} .*'{field}'"):
        Recipe(**{field: value})


def test_weights_are_checked() -> None:
    name = "wlib.quant.quantize_weight: expected"
    with pytest.raises(ValueError, match=rf"{name} w of shape \[N, K\], got \[2, 3, 128\]"):
        quantize_weight(torch.randn(2, 3, 128), Recipe())
    with pytest.raises(ValueError, match="group_size"):
        quantize_weight(torch.randn(2, 192), Recipe())
    with pytest.raises(ValueError, match=f"{name} moments for GPTQ"):
        quantize_weight(torch.randn(2, 128), Recipe(rounding="gptq"))
    w = torch.randn(2, 128)
    w[1, 7] = torch.nan
    with pytest.raises(ValueError, match=f"{name} w finite in float32, got 1 NaN or Inf"):
        quantize_weight(w, Recipe())


def test_a_metric_is_positive_definite_for_few_tokens() -> None:
    metric = Metric.of(moments_of(torch.randn(3, 64)).second(True), 0.05)
    assert torch.linalg.eigvalsh(metric.h).min() > 0
    assert metric.factor.isfinite().all()
