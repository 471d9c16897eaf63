# SPDX-License-Identifier: Apache-2.0
"""Where a set of points lies: an origin and a size that a minority of far, infinite or NaN points does not change."""

from functools import lru_cache

import torch
from torch import Tensor

# Rows looked at: three rounds of medians of three.
_SAMPLE = 27
# Steps of the golden ratio meet no period of the data, as every n-th row would.
_STEP = 0.6180339887498949


def typical_rows(x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Return 27 rows (..., 27, D) of ``x`` (..., N, D), or of ``x`` and ``y`` (..., M, D) together, without gradient.

    ``mask`` (..., N) bool, True = valid, is that of ``x``; a problem without a valid point gets NaN.
    """
    x, num_x, share = x.detach(), x.shape[-2], _SAMPLE
    if y is not None:
        share = min(max(round(_SAMPLE * num_x / (num_x + y.shape[-2])), 1), _SAMPLE - 1)
    rows = _rows(x, share) if mask is None else _valid_rows(x, mask, share)
    if y is None:
        return rows
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    both = rows, _rows(y.detach(), _SAMPLE - share)
    return torch.cat([each.expand(*lead, *each.shape[-2:]) for each in both], -2)


def typical_origin(rows: Tensor) -> Tensor:
    """Return a finite point (..., 1, D) amid most of the ``rows`` (..., 27, D).

    A product form |x|^2 - 2 x.y + |y|^2 about this origin keeps the digits of most points whatever the others hold.
    The mean would not do: one sentinel of 1e6 moves it far away from everything.

    Source: Rousseeuw and Bassett, "The remedian", JASA 1990: medians of medians of three. On accelerators the
    median itself, which is one launch there and slower on the CPU.
    """
    return finite(_median(rows))


def typical_size(rows: Tensor, origin: Tensor) -> Tensor:
    """Return the largest coordinate (..., 1, 1), finite, that most ``rows`` have seen from ``origin``; 0 if equal."""
    return finite(_median((rows - origin).abs().amax(-1, keepdim=True)))


def finite(x: Tensor) -> Tensor:
    """Return ``x`` with 0 for NaN and inf."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def power_of_two(x: Tensor) -> Tensor:
    """Return the power of two next below each number of ``x`` >= 0; it and its inverse are normal numbers."""
    limit = 120.0 if x.dtype == torch.float32 else 1000.0
    exponent = torch.log2(x.clamp_min(torch.finfo(x.dtype).tiny)).floor()
    return torch.exp2(exponent.clamp(-limit, limit))


def squares_fit(squares: Tensor) -> bool:
    """Return whether squared norms lie well inside the range of their type, so that their sums keep all digits."""
    low, high = (1e-24, 1e36) if squares.dtype == torch.float32 else (1e-270, 1e300)
    if squares.numel() == 0:
        return True
    smallest, largest = squares.detach().aminmax()
    return low < smallest.item() and largest.item() < high


def too_large(squares: Tensor) -> Tensor:
    """Return True for squared norms that are NaN, infinite or near overflow."""
    return ~(squares < (1e36 if squares.dtype == torch.float32 else 1e300))


def unit_of(typical: Tensor, largest: Tensor) -> Tensor:
    """Return the power of two near the typical size, or the largest where the typical one is 0, or 1."""
    return power_of_two(torch.where(typical > 0, typical, torch.where(largest > 0, largest, 1.0)))


def exact_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return Euclidean distances (R, M) of ``rows`` (R, D) to ``others`` (M, D) from float64 differences.

    For the few rows whose squares leave the range of their type: these do not overflow, and NaN and inf stay in
    their row.
    """
    largest = torch.stack([finite(each.detach()).abs().amax() for each in (rows, others)]).amax()
    unit = power_of_two(largest.double())
    distances = torch.cdist(rows.double() / unit, others.double() / unit, compute_mode='donot_use_mm_for_euclid_dist')
    return (distances * unit).to(rows.dtype)


def _positions(count: int, num_points: int, device: torch.device) -> Tensor:
    return (torch.arange(count, dtype=torch.float64, device=device).mul(_STEP).frac() * num_points).long()


@lru_cache(maxsize=256)
def _cached_positions(count: int, num_points: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for training steps as well
        return _positions(count, num_points, device)


def _rows(x: Tensor, count: int) -> Tensor:
    positions = _positions if torch.compiler.is_compiling() or x.device.type != 'cpu' else _cached_positions
    return x.index_select(-2, positions(count, x.shape[-2], x.device))


def _valid_rows(x: Tensor, mask: Tensor, count: int) -> Tensor:
    valid = mask.cumsum(-1)
    total = valid[..., -1:]
    share = torch.arange(count, dtype=torch.float64, device=x.device).mul(_STEP).frac()
    rank = (share * total).long() + 1
    index = torch.searchsorted(valid, rank).clamp_max(x.shape[-2] - 1)
    rows = x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
    return rows.masked_fill((total == 0).unsqueeze(-1), torch.nan)


def _median(rows: Tensor) -> Tensor:
    rows = rows.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)  # fmin would be ten times slower
    if rows.device.type != 'cpu' and not torch.compiler.is_compiling():  # one launch instead of twelve
        return rows.sort(dim=-2, stable=True).values[..., rows.shape[-2] // 2, None, :]
    while rows.shape[-2] > 1:
        first, second, third = rows.unflatten(-2, (3, -1)).unbind(-3)
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        rows = torch.maximum(low, torch.minimum(high, third))
    return rows
