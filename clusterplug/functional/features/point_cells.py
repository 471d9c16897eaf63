# SPDX-License-Identifier: Apache-2.0
"""Cells over points in space: where each point lies, and the cells around it."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import whole_number


class PointCells(NamedTuple):
    """Occupied cells of a batch of clouds.

    Attributes:
        home: (N,) int64 cell of each point.
        around: (M, 9) int64 cells in the 3 x 3 of the plan around each (same height), the cell itself first; where a
            neighbor holds no point, the cell itself again.
        coordinates: (M, 4) int64 batch entry, and place of each cell, in the order of the points' coordinates.
    """

    home: Tensor
    around: Tensor
    coordinates: Tensor


def point_cells(coordinates: Tensor, size: int = 2) -> PointCells:
    """Lay cubic cells over points on a grid.

    Args:
        coordinates: (N, 4) int: batch entry, then three places; the first two of them span the plan.
        size: Places in a cell along each side.

    Returns:
        The cells that hold points, sorted by batch entry and place. Reads the number of cells on the host.

    Raises:
        ValueError: The shape is wrong, or ``size`` is below 1.

    Example:
        >>> cells = point_cells(torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 2, 0, 0], [1, 2, 0, 0]]))
        >>> cells.home.tolist(), cells.around[0].unique().tolist()
        ([0, 0, 1, 2], [0, 1])
    """
    if coordinates.dim() != 2 or coordinates.shape[1] != 4 or coordinates.is_floating_point():
        raise ValueError(
            f'coordinates must be int (N, 4): batch entry and three places, got {tuple(coordinates.shape)} '
            f'{coordinates.dtype}'
        )
    size = whole_number('size', size)
    coarse = coordinates.long().clone()
    coarse[:, 1:] = torch.div(coarse[:, 1:], size, rounding_mode='floor')
    if not len(coarse):
        return PointCells(coarse[:, 0], coarse.new_zeros(0, 9), coarse)
    lowest = coarse.amin(0)
    # one more place on every side, so that a neighbor never wraps around
    extent = (coarse.amax(0) - lowest + 3).tolist()
    strides = coarse.new_tensor([extent[1] * extent[2] * extent[3], extent[2] * extent[3], extent[3], 1])
    keys, home = ((coarse - lowest + 1) * strides).sum(1).unique(return_inverse=True)
    steps = [(0, 0)] + [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
    wanted = keys[:, None] + (coarse.new_tensor(steps) * strides[1:3]).sum(1)
    found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    own = torch.arange(len(keys), device=keys.device)[:, None]
    around = torch.where(keys[found] == wanted, found, own)
    places = torch.zeros(len(keys), 4, dtype=torch.int64, device=keys.device)
    places[home] = coarse
    return PointCells(home, around, places)


def cell_means(values: Tensor, cells: PointCells) -> Tensor:
    """Mean (M, ...) of the values (N, ...) in each cell."""
    number = len(cells.coordinates)
    sums = values.new_zeros(number, *values.shape[1:]).index_add_(0, cells.home, values)
    counts = values.new_zeros(number).index_add_(0, cells.home, values.new_ones(len(values)))
    return sums / counts.clamp_min(1).view(-1, *[1] * (values.dim() - 1))
