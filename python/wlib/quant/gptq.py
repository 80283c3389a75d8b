"""GPTQ with scales from the compensated weights, and a refinement of its result.

Both minimise `Metric.error(w - codes * scale)`. The columns keep their order, so that groups stay
runs of columns and nothing has to be permuted when the layer runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..group_scale import ScaleGrid, ScaleRule, choose_scale, round_codes
from .moments import Metric

_BLOCK = 128  # columns whose errors reach the rest of the weight in one matmul


def error_feedback(
    w: Tensor, metric: Metric, rule: ScaleRule, grid: ScaleGrid, group_size: int
) -> tuple[Tensor, Tensor]:
    """Round column by column, each error moved onto the columns that follow (arXiv 2210.17323).

    A group's scale is chosen when its first column is reached, for the weights as they then are.

    Args:
        w: float32 [N, K].
        metric: of the layer's inputs.
        rule: how scales are chosen; "mse" counts an error by what is left of it after feedback.
        grid: the values scales can have.
        group_size: G.

    Returns:
        codes: integers as float32 [N, K].
        scale: float32 [N, K/G].
    """
    w = w.clone()
    codes = torch.empty_like(w)
    factor = metric.factor
    importance = factor.diagonal().pow(-2)
    scales = []
    block = _blocks(group_size)
    for start in range(0, w.shape[1], block):
        stop = start + block
        if start % group_size == 0:
            group = slice(start, start + group_size)
            scales.append(choose_scale(w[:, None, group], rule, grid, importance[None, group]))
        scale = scales[-1][:, 0]
        here = factor[start:stop, start:stop]
        columns = w[:, start:stop].T.contiguous()  # [block, N]: a column's weights lie together
        rounded = torch.empty_like(columns)
        for j in range(block):
            rounded[j] = round_codes(columns[j], scale)
            columns[j].sub_(rounded[j] * scale).div_(here[j, j])  # from here on the error
            columns[j + 1 :].addr_(here[j, j + 1 :], columns[j], alpha=-1)
        codes[:, start:stop] = rounded.T
        w[:, stop:].addmm_(columns.T, factor[start:stop, stop:], alpha=-1)
    return codes, torch.cat(scales, dim=1)


def refine(
    w: Tensor, metric: Metric, codes: Tensor, scale: Tensor, grid: ScaleGrid
) -> tuple[Tensor, Tensor]:
    """Scales refitted to the codes, then codes to the scales; no row's error grows.

    Takes and returns what `error_feedback` does.
    """
    refitted = grid.round(_least_squares_scale(w, metric, codes, scale.shape[1]))
    before, after = (metric.error(w - codes * _columns(s, w)) for s in (scale, refitted))
    scale = torch.where((after < before)[:, None], refitted, scale)
    return _descend(w, metric, codes, _columns(scale, w)), scale


def _blocks(group_size: int) -> int:
    return _BLOCK if group_size % _BLOCK == 0 else group_size


def _columns(scale: Tensor, w: Tensor) -> Tensor:
    """Scales [N, K/G] repeated for each column of w [N, K]."""
    return scale.repeat_interleave(w.shape[1] // scale.shape[1], dim=1)


def _least_squares_scale(w: Tensor, metric: Metric, codes: Tensor, groups: int) -> Tensor:
    """Scales of least error for given codes: a row's normal equations, [K/G, K/G] each."""
    n, k = w.shape
    size = k // groups
    grouped = codes.double().view(n, groups, size)
    pulls = (w.double() @ metric.h).view(n, groups, size)
    right = (grouped * pulls).sum(dim=2)
    left = right.new_empty(n, groups, groups)
    for g in range(groups):
        rows = metric.h[g * size : (g + 1) * size]
        left[:, g] = ((grouped[:, g] @ rows).view(n, groups, size) * grouped).sum(dim=2)
    diagonal = left.diagonal(dim1=1, dim2=2)
    diagonal += torch.where(diagonal == 0, 1.0, 1e-9 * diagonal)  # a group of zero codes
    scale: Tensor = torch.linalg.solve(left, right)
    return scale.clamp_(min=0).float()


def _descend(w: Tensor, metric: Metric, codes: Tensor, scale: Tensor) -> Tensor:
    """One sweep over the columns, each set to its best code given all others."""
    h = metric.h.float()
    result = torch.empty_like(codes)
    gradient = (w - codes * scale) @ h
    for start in range(0, w.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        here = h[part, part]
        slopes, steps, now = (x[:, part].T.contiguous() for x in (gradient, scale, codes))
        values = now * steps
        changes = torch.empty_like(now)
        for j in range(len(now)):
            code = round_codes(slopes[j] / here[j, j] + values[j], steps[j])
            now[j] = code
            torch.sub(code * steps[j], values[j], out=changes[j])
            slopes[j + 1 :].addr_(here[j, j + 1 :], changes[j], alpha=-1)
        result[:, part] = now.T
        gradient[:, part.stop :].addmm_(changes.T, h[part, part.stop :], alpha=-1)
    return result
