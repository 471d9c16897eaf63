# SPDX-License-Identifier: Apache-2.0
"""Regions of labels that are assigned as one: objects, or connected cells that hold one class."""

import torch
from torch import Tensor

from clusterplug.attach.taps import Rows
from clusterplug.functional.graph import connected_cells

# Classes and instances of all scans share one int64 with a bit that tells objects from cells.
_CLASSES, _NO_GROUP, _OBJECT = 1 << 11, 1 << 21, 1 << 62
# Cells of a grid whose axes are no lengths (Cylinder3D), for each unit of cell_size.
_GRID_CELLS = 8


def cell_regions(labels: Tensor, positions: Tensor, batch: Tensor, cell_size: float) -> Tensor:
    """Number of the connected cells of one class that each label lies in. No host synchronization.

    Cells are cubes (squares in a plane) that hold a label of the class; those that share a side are connected, as far
    as they go.

    Args:
        labels: (N,) int64 classes; labels below 0 or above 2,047 have no region.
        positions: (N, 2 or 3) coordinates.
        batch: (N,) int64 number of the scan or image, up to 1,023.
        cell_size: edge of a cell in the units of ``positions``.

    Returns:
        (N,) int64, equal where scan, class and connected part are; -1 where there is no region: positions that are not
        finite, and labels that are no class.

    Example:
        >>> positions = torch.tensor([[0.2, 0.1, 0.0], [1.9, 0.3, 0.2], [3.2, 0.0, 0.0]])
        >>> a, b, c = cell_regions(torch.zeros(3, dtype=torch.int64), positions, torch.zeros(3, dtype=torch.int64), 1.0)
        >>> bool(a == b), bool(a == c)
        (True, False)
    """
    known = positions.isfinite().all(1) & (labels >= 0) & (labels < _CLASSES)
    cells = (positions.masked_fill(~known[:, None], 0) / cell_size).floor().long()
    group = torch.where(known, batch * _CLASSES + labels, _NO_GROUP)
    return torch.where(known, connected_cells(cells, group), -1)


def instance_regions(cells: Tensor, labels: Tensor, instances: Tensor | None, batch: Tensor) -> Tensor:
    """Number of the object of each label, of its cells where it belongs to none (instance 0 or below)."""
    if instances is None:
        return cells
    number = ((batch * _CLASSES + labels.remainder(_CLASSES)) << 32) + instances.long() + _OBJECT
    return torch.where(instances > 0, number, cells)


def label_positions(kind: str, count: int, inputs, coords: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Positions (N, 3) and scan (N,) of the labels of a scan or batch; None if the inputs do not tell them.

    ``'point'``: the points of the preprocessor. ``'voxel'``: the first three features of the voxels where those are
    positions (MinkUNet), else the coordinates in the grid, of which ``_GRID_CELLS`` along each axis are a unit.
    """
    points = inputs.get('points') if isinstance(inputs, dict) else None
    if kind == 'point' and points is not None and sum(map(len, points)) == count:
        return stacked_points(points)
    if coords is None or coords.shape[0] != count:
        return None
    voxels = inputs.get('voxels') if isinstance(inputs, dict) else None
    values = voxels.get('voxels') if isinstance(voxels, dict) else None
    if kind == 'voxel' and isinstance(values, Tensor) and values.dim() == 2 and 'voxel_coors' not in voxels:
        return values[:, :3].float(), coords[:, 0].long()
    return coords[:, 1:].float() / _GRID_CELLS, coords[:, 0].long()


def stacked_points(scans: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Coordinates (M, 3) of the points of all scans, and (M,) int64 number of the scan of each."""
    batch = [scan.new_full((len(scan),), number, dtype=torch.int64) for number, scan in enumerate(scans)]
    return torch.cat([scan[:, :3] for scan in scans]).float(), torch.cat(batch)


def stacked_instances(samples: list, kind: str) -> Tensor | None:
    """Instance ids of all samples in one row, 0 for what is no object; None where a sample has none."""
    name = 'voxel_instance_mask' if kind == 'voxel' else 'pts_instance_mask'
    masks = [getattr(getattr(sample, 'gt_pts_seg', None), name, None) for sample in samples]
    return torch.cat(masks) if masks and all(mask is not None for mask in masks) else None


def image_regions(labels: Tensor) -> Tensor:
    """Connected parts of one class, (B, H, W) labels to (B H W,) numbers; pixels that share a side are connected."""
    axes = (torch.arange(size, device=labels.device) for size in labels.shape)
    image, y, x = (axis.flatten() for axis in torch.meshgrid(*axes, indexing='ij'))
    return cell_regions(labels.flatten(), torch.stack([y, x], 1).float(), image, 1.0)


def image_rows(rows: Rows, labels: Tensor) -> Tensor:
    """(B, h, w) labels of the pixels of a feature map (B, h, w): those of (B, H, W) at the middle of each."""
    # by indices: interpolation takes floats, which an ignore_index of 2^31 - 1 is none of
    y, x = (
        ((torch.arange(small, device=labels.device) + 0.5) * (large / small)).long().clamp_max_(large - 1)
        for small, large in zip(rows.grid, labels.shape[1:], strict=True)
    )
    return labels[:, y[:, None], x].long()
