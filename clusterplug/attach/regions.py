# SPDX-License-Identifier: Apache-2.0
"""Regions of labels that are assigned as one: objects, or cells of space that hold one class."""

import torch
from torch import Tensor

from clusterplug.attach.taps import Rows

# Cells, instances and scans share one int64: scans 2^10, classes 2^11, three axes of 2^13 cells (8 km of 1 m) each.
_AXIS, _CLASSES = 1 << 13, 1 << 11
# Cells of a grid whose axes are no lengths (Cylinder3D), and pixels of a cell for each unit of cell_size.
_GRID_CELLS = 8
PIXELS = 16


def cell_regions(labels: Tensor, positions: Tensor, batch: Tensor, cell_size: float) -> Tensor:
    """Number of the cell and class of each label. No host synchronization.

    Args:
        labels: (N,) int64 classes, or any label that is ignored later.
        positions: (N, 2 or 3) coordinates.
        batch: (N,) int64 number of the scan or image.
        cell_size: edge of a cell in the units of ``positions``.

    Returns:
        (N,) int64; equal where scan, class and cell are. Positions that are not finite are regions of their own (-1).

    Example:
        >>> positions = torch.tensor([[0.2, 0.1, 0.0], [0.9, 0.3, 0.2], [1.2, 0.0, 0.0]])
        >>> a, b, c = cell_regions(torch.zeros(3, dtype=torch.int64), positions, torch.zeros(3, dtype=torch.int64), 1.0)
        >>> bool(a == b), bool(a == c)
        (True, False)
    """
    finite = positions.isfinite().all(1)
    cells = (positions.masked_fill(~finite[:, None], 0) / cell_size).floor().long().remainder(_AXIS)
    number = batch * _CLASSES + labels.remainder(_CLASSES)
    for axis in cells.unbind(1):
        number = number * _AXIS + axis
    return torch.where(finite, number, -1)


def instance_regions(cells: Tensor, labels: Tensor, instances: Tensor | None, batch: Tensor) -> Tensor:
    """Number of the object of each label, of its cell where it belongs to none (instance 0 or below)."""
    if instances is None:
        return cells
    # a bit that no cell has keeps objects apart from cells
    number = ((batch * _CLASSES + labels.remainder(_CLASSES)) << 32) + instances.long() + (1 << 62)
    return torch.where(instances > 0, number, cells)


def label_positions(kind: str, count: int, inputs, coords: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Positions (N, 3) and scan (N,) of the labels of a scan or batch; None if the inputs do not tell them.

    ``'point'``: the points of the preprocessor. ``'voxel'``: the first three features of the voxels where those are
    positions (MinkUNet), else the coordinates in the grid, of which ``_GRID_CELLS`` along each axis are a unit.
    """
    points = inputs.get('points') if isinstance(inputs, dict) else None
    if kind == 'point' and points is not None and sum(map(len, points)) == count:
        scans = [points[0].new_full((len(scan),), number, dtype=torch.int64) for number, scan in enumerate(points)]
        return torch.cat([scan[:, :3] for scan in points]).float(), torch.cat(scans)
    if coords is None or coords.shape[0] != count:
        return None
    voxels = inputs.get('voxels') if isinstance(inputs, dict) else None
    values = voxels.get('voxels') if isinstance(voxels, dict) else None
    if kind == 'voxel' and isinstance(values, Tensor) and values.dim() == 2 and 'voxel_coors' not in voxels:
        return values[:, :3].float(), coords[:, 0].long()
    return coords[:, 1:].float() / _GRID_CELLS, coords[:, 0].long()


def stacked_instances(samples: list, kind: str) -> Tensor | None:
    """Instance ids of all samples in one row, 0 for what is no object; None where a sample has none."""
    name = 'voxel_instance_mask' if kind == 'voxel' else 'pts_instance_mask'
    masks = [getattr(getattr(sample, 'gt_pts_seg', None), name, None) for sample in samples]
    return torch.cat(masks) if masks and all(mask is not None for mask in masks) else None


def image_regions(labels: Tensor, stride: float, cell_size: float) -> Tensor:
    """Square cells of an image, (B, H, W) labels at ``stride`` pixels to (B H W,) numbers."""
    batch, height, width = labels.shape
    axes = (torch.arange(size, device=labels.device) for size in (batch, height, width))
    b, y, x = (axis.flatten() for axis in torch.meshgrid(*axes, indexing='ij'))
    positions = torch.stack([y, x], 1).float() * stride
    return cell_regions(labels.flatten(), positions, b, PIXELS * cell_size)


def image_rows(rows: Rows, labels: Tensor) -> tuple[Tensor, float]:
    """(B, H, W) labels of the pixels of a feature map (B, H, W): those at the middle of each, and its stride."""
    height, width = rows.grid
    resized = torch.nn.functional.interpolate(labels[:, None].float(), size=(height, width), mode='nearest-exact')
    return resized[:, 0].long(), labels.shape[1] / height
