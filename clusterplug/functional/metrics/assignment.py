# SPDX-License-Identifier: Apache-2.0
"""One-to-one matching of least total cost, for a batch of cost matrices."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Assignment', 'linear_assignment']


class Assignment(NamedTuple):
    """Matched pairs: row ``rows[i]`` belongs to column ``cols[i]``."""

    rows: Tensor  # (..., min(N, M)) int64, ascending
    cols: Tensor  # (..., min(N, M)) int64


@torch.no_grad()
def linear_assignment(cost: Tensor, *, maximize: bool = False) -> Assignment:
    r"""Return the one-to-one matching of rows to columns with the least total cost, for each matrix of a batch.

    .. math:: \min_{\pi} \sum_{i} C_{r_i c_i}

    over all matchings of min(N, M) pairs. The Hungarian problem is solved exactly on the host, in float64, so a
    tensor of another device is copied there once for the whole batch.

    Args:
        cost: (..., N, M), floating or integer. +inf forbids a pair (-inf with ``maximize``).
        maximize: Return the matching with the largest total instead.

    Returns:
        ``Assignment(rows, cols)``: two (..., min(N, M)) int64 tensors on the device of ``cost``, rows ascending.

    Raises:
        TypeError: ``cost`` is not a real tensor.
        ValueError: Fewer than two dimensions, NaN, infinity of the wrong sign, or forbidden pairs that leave no
            complete matching.

    Source: Kuhn 1955; shortest augmenting paths, Jonker and Volgenant 1987, by
    ``scipy.optimize.linear_sum_assignment`` where scipy is installed. **Differs from it**: batched, tensors.

    Example:
        >>> rows, cols = linear_assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
        >>> cols
        tensor([1, 0, 2])
    """
    _check(cost, maximize)
    lead, (num_rows, num_cols) = cost.shape[:-2], cost.shape[-2:]
    pairs = min(num_rows, num_cols)
    table = cost.detach().cpu().double().reshape(math.prod(lead), num_rows, num_cols)
    table = -table if maximize else table
    rows = torch.empty(len(table), pairs, dtype=torch.int64, device='cpu')
    cols = torch.empty_like(rows)
    for number in range(len(table)):
        rows[number], cols[number] = best_assignment(table[number])
    shape = (*lead, pairs)
    return Assignment(rows.view(shape).to(cost.device), cols.view(shape).to(cost.device))


def _check(cost: Tensor, maximize: bool) -> None:
    if not isinstance(cost, Tensor):
        raise TypeError(f'cost must be a torch.Tensor, got {type(cost).__name__}; convert it with torch.as_tensor')
    if cost.dtype == torch.bool or cost.is_complex():
        raise TypeError(f'cost must be real numbers, got {cost.dtype}; convert it with cost.float()')
    if cost.dim() < 2:
        raise ValueError(f'cost must have shape (..., N, M), got {tuple(cost.shape)}; add the missing dimension')
    if cost.is_floating_point():
        wrong = math.inf if maximize else -math.inf
        if bool((cost.isnan() | (cost == wrong)).any()):
            raise ValueError(
                f'cost must not hold NaN or {wrong}, got {int((cost.isnan() | (cost == wrong)).sum())} such entries; '
                f'{-wrong} forbids a pair'
            )


def best_assignment(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the best matching of one ``cost`` (N, M) of float64 on the CPU."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        rows, cols = shortest_augmenting_paths(cost)
        order = rows.argsort()
        return rows[order], cols[order]
    try:
        rows, cols = linear_sum_assignment(cost.numpy())
    except ValueError as error:
        raise ValueError(f'cost must leave a complete matching: {error}; forbid fewer pairs') from error
    return torch.from_numpy(rows), torch.from_numpy(cols)


def shortest_augmenting_paths(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The same without scipy: one shortest augmenting path per row, O(n^2 m), vectorized over the columns."""
    if cost.shape[0] > cost.shape[1]:
        cols, rows = shortest_augmenting_paths(cost.mT)
        return rows, cols
    num_rows, num_cols = cost.shape
    row_of = torch.full((num_cols,), -1, device=cost.device)
    row_price, col_price = cost.new_zeros(num_rows), cost.new_zeros(num_cols)
    for start in range(num_rows):
        distance = cost.new_full((num_cols,), math.inf)
        previous, done = torch.full((num_cols,), -1, device=cost.device), cost.new_zeros(num_cols, dtype=torch.bool)
        row, column, lowest = start, -1, 0.0
        while row != -1:
            through = lowest + cost[row] - row_price[row] - col_price
            better = ~done & (through < distance)
            distance, previous = torch.where(better, through, distance), torch.where(better, column, previous)
            column = int(distance.masked_fill(done, math.inf).argmin())
            lowest, done[column] = float(distance[column]), True
            if math.isinf(lowest):
                raise ValueError(
                    'cost must leave a complete matching, got a row with no column left; forbid fewer pairs'
                )
            row = int(row_of[column])
        seen = done & (row_of >= 0)
        row_price[row_of[seen]] += lowest - distance[seen]
        row_price[start] += lowest
        col_price[done] -= lowest - distance[done]
        while column != -1:
            before = int(previous[column])
            row_of[column] = start if before == -1 else row_of[before]
            column = before
    cols = (row_of >= 0).nonzero().flatten()
    return row_of[cols], cols
