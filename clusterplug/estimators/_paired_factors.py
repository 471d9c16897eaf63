# SPDX-License-Identifier: Apache-2.0
"""Two paired sets of features as small triangles that hold their means and covariances without squaring them."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clusterplug.functional import CCAResult, cca

# Rows that are made a triangle at once.
_BLOCK = 8192


class Factors(NamedTuple):
    """Covariances of n paired rows: x^T x / n = C_x, x^T y / n = C_xy, y^T y / n = C_y; rows sum to 0."""

    x: Tensor  # (m, p)
    y: Tensor  # (m, q)
    x_mean: Tensor  # (p,)
    y_mean: Tensor  # (q,)
    number: int  # n


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Return R of [1, X, Y] = Q R, of rows taken block by block."""
    found = x.new_zeros(0, 1 + x.shape[1] + y.shape[1])
    for first in range(0, len(x), _BLOCK):
        rows = [each[first : first + _BLOCK] for each in (x, y)]
        found = joined([found, torch.cat([rows[0].new_ones(len(rows[0]), 1), *rows], 1)])
    return found


def joined(triangles: list[Tensor]) -> Tensor:
    """Return the triangle of the rows of all."""
    return torch.linalg.qr(torch.cat(triangles), mode='r').R


def factors(found: Tensor, count: int, width: int) -> Factors:
    """Split a triangle of ``count`` rows: its first row holds the means, the rest deviations from them."""
    mean = found[0, 1:] / found[0, 0]
    rest = found[1:, 1:] / count**0.5
    rest = torch.cat([rest, -rest]) / 2**0.5  # of mean 0
    return Factors(rest[:, :width], rest[:, width:], mean[:width], mean[width:], count)


def canonical(given: Factors, number: int | None, ridge: float) -> CCAResult:
    """Return the canonical directions of the rows behind ``given``, around their means."""
    scale = len(given.x) ** 0.5
    found = cca(given.x * scale, given.y * scale, number, ridge=ridge)
    return found._replace(x_mean=given.x_mean, y_mean=given.y_mean)


def held_out_correlations(x: Tensor, y: Tensor, parts: list[Tensor], triangles: list[Tensor], ridge: float) -> Tensor:
    """Correlation of each pair of directions on rows that they were not fitted to, averaged over the parts."""
    total: Tensor | None = None
    for number, part in enumerate(parts):
        others = triangles[:number] + triangles[number + 1 :]
        given = factors(joined(others), len(x) - len(part), x.shape[1])
        found = canonical(given, None, ridge)
        one, other = x[part] @ found.x_weights, y[part] @ found.y_weights
        one, other = one - one.mean(0), other - other.mean(0)
        size = (one.square().sum(0) * other.square().sum(0)).sqrt()
        value = torch.where(size > 0, (one * other).sum(0) / torch.where(size > 0, size, 1.0), 0.0) * len(part)
        if total is None:
            total = value
        else:  # a part may have a direction less
            width = min(len(total), len(value))
            total = total[:width] + value[:width]
    assert total is not None, 'there is a part'
    return total / len(x)


def largest_gap(correlations: Tensor) -> int:
    """Return after how many components the correlations fall most (to 0 after the last)."""
    steps = torch.cat([correlations.clamp(min=0).cummin(0).values, correlations.new_zeros(1)])
    return int((steps[:-1] - steps[1:]).argmax()) + 1


def read_rows(values: Any, name: str) -> tuple[Tensor, bool]:
    """Return rows (N, D) in float64, and whether they came as a tensor."""
    is_torch = isinstance(values, Tensor)
    tensor = values.detach() if is_torch else torch.from_numpy(np.array(values))  # a copy: any strides, any owner
    if tensor.is_complex():
        raise ValueError(f'{name} must hold real numbers, got {tensor.dtype}')
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f'{name} must be a 2D array (n_samples, n_features), not empty, got {tuple(tensor.shape)}')
    tensor = tensor.double()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f'{name} must be finite, got NaN or infinity; drop those samples')
    return tensor, is_torch


def varying(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the features that vary, and which those are."""
    kept = x.amax(0) - x.amin(0) > 1e-12 * x.abs().amax(0)
    if bool(kept.all()):
        return x, kept
    if not bool(kept.any()):
        raise ValueError(f'{name} must hold a feature that varies, got {x.shape[1]} constant ones')
    warnings.warn(f'{int((~kept).sum())} constant features of {name} are ignored', stacklevel=3)
    return x[:, kept], kept


def identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def scatter(values: Tensor, kept: Tensor) -> Tensor:
    """Rows of all features, 0 for those that are ignored."""
    found = values.new_zeros(len(kept), *values.shape[1:])
    found[kept] = values
    return found


def paired_shares(y: Tensor, pairs: Tensor, lists: Tensor) -> dict[str, float]:
    """Shares of rows that are found by a matching (Q,) and within lists (Q, k), and by chance; copies count alike."""
    _, group, sizes = torch.unique(y.cpu(), dim=0, return_inverse=True, return_counts=True)
    number, k = lists.shape
    hit = group[lists] == group.unsqueeze(1)
    copies = sizes[group].double()
    missed = torch.ones_like(copies)
    for drawn in range(k):
        missed = missed * ((number - copies - drawn) / (number - drawn)).clamp(min=0)
    found = {'match': group[pairs] == group, 'top1': hit[:, 0], f'top{k}': hit.any(1)}
    found |= {'chance_match': copies / number, 'chance_top1': copies / number, f'chance_top{k}': 1 - missed}
    return {name: float(value.double().mean()) for name, value in found.items()} | {'repeated': int((copies > 1).sum())}
