# SPDX-License-Identifier: Apache-2.0
"""Regions of a scan without labels: voxel cells, or connected segments that stand on the ground."""

import torch
from torch import Tensor


def cell_regions(xyz: Tensor, size: float) -> Tensor:
    """(N,) int64 number of the cube of edge ``size`` that each point (N, 3) lies in, from 0 without gaps."""
    cells = torch.floor((xyz - xyz.amin(0)) / size).long()
    sides = cells.amax(0) + 1
    flat = (cells[:, 0] * sides[1] + cells[:, 1]) * sides[2] + cells[:, 2]
    return torch.unique(flat, return_inverse=True)[1]


def segment_regions(xyz: Tensor, size: float = 0.5, ground_cell: float = 2.0, ground_height: float = 0.3) -> Tensor:
    """(N,) int64 connected segment of each point (N, 3), z up; -1 on the ground.

    Ground is what lies less than ``ground_height`` above the lowest point of its ``ground_cell`` seen from above, where
    that point itself is less than one ``ground_cell`` above the lowest of the cells around. The rest is connected
    where cells of ``size`` touch, seen from above.

    Args:
        xyz: coordinates in meters.
        size: edge of the cells that are connected.
        ground_cell: edge of the cells in which the ground is looked for.
        ground_height: thickness of the ground.
    """
    from scipy import ndimage

    origin = xyz[:, :2].amin(0)
    cells = torch.floor((xyz[:, :2] - origin) / ground_cell).long()
    sides = (cells.amax(0) + 1).tolist()
    flat = cells[:, 0] * sides[1] + cells[:, 1]
    lowest = torch.full((sides[0] * sides[1],), torch.inf, dtype=xyz.dtype)
    lowest = lowest.scatter_reduce(0, flat, xyz[:, 2], 'amin').view(sides)
    around = torch.from_numpy(ndimage.minimum_filter(lowest.numpy(), 3, mode='nearest'))
    # a cell without ground (a roof, a wall) takes that of its neighbors
    level = torch.where(lowest - around < ground_cell, lowest, around).flatten()
    standing = xyz[:, 2] - level[flat] > ground_height
    fine = torch.floor((xyz[:, :2] - origin) / size).long()
    occupied = torch.zeros(*(fine.amax(0) + 1).tolist(), dtype=torch.bool)
    occupied[fine[standing, 0], fine[standing, 1]] = True
    parts = torch.from_numpy(ndimage.label(occupied.numpy(), structure=torch.ones(3, 3).numpy())[0]).long()
    return torch.where(standing, parts[fine[:, 0], fine[:, 1]] - 1, -1)
