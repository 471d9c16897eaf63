# SPDX-License-Identifier: Apache-2.0
"""Which row of a tapped feature belongs to which label."""

import torch
from torch import Tensor

from clusterplug.attach.taps import Rows


def stacked_labels(data_samples: list, kind: str) -> Tensor | None:
    """Labels of all samples in one row: ``kind`` is ``'voxel'`` or ``'point'``; None where a sample has none."""
    name = 'voxel_semantic_mask' if kind == 'voxel' else 'pts_semantic_mask'
    masks = [getattr(getattr(sample, 'gt_pts_seg', None), name, None) for sample in data_samples]
    return torch.cat(masks) if masks and all(mask is not None for mask in masks) else None


def align(
    rows: Rows, labels: dict[str, Tensor], coords: Tensor | None, path: str, grid: tuple[int, ...] | None = None
) -> tuple[str, Tensor | None]:
    """Find the labels that a feature goes with.

    Args:
        rows: the tapped feature.
        labels: the labels at hand by kind.
        coords: (N, 4) coordinates of the voxels that carry the 'voxel' labels, or of the voxel of each point where the
            model makes the voxels itself; batch index first; or None.
        path: name of the tap, for messages.
        grid: voxels along each axis of the grid of ``coords``; None: as far as they reach.

    Returns:
        The kind of labels, and None if row i of the feature belongs to label i. For a coarser sparse feature: (N,)
        int64 row of each label's voxel, -1 where the coarse grid has dropped it.

    Raises:
        ValueError: nothing fits; the message tells what there is.
    """
    for kind, values in labels.items():
        if values.shape[0] == rows.features.shape[0]:
            return kind, None
    if rows.indices is not None and coords is not None:
        for kind, values in labels.items():
            if values.shape[0] == coords.shape[0]:
                return kind, coarse_rows(rows, coords, grid)
    have = ', '.join(f'{values.shape[0]} {kind} labels' for kind, values in labels.items()) or 'no labels'
    raise ValueError(
        f"the layer '{path}' has {rows.features.shape[0]} rows, which cannot be aligned with {have}; tap a layer with "
        f'one row per label, or a sparse one of spconv (any stride)'
    )


def grid_cells(rows: Rows, inputs) -> Tensor | None:
    """(M, 2 or 3) int64 coordinates of the rows of a feature in their grid; None where they have none (points)."""
    if rows.indices is not None:
        return rows.indices[:, 1:].long()
    if rows.grid is not None:
        pixel = torch.arange(rows.features.shape[0], device=rows.features.device)
        height, width = rows.grid
        return torch.stack([pixel // width % height, pixel % width], 1)
    voxels = inputs.get('voxels') if isinstance(inputs, dict) else None
    coords = voxels.get('voxel_coors', voxels.get('coors')) if isinstance(voxels, dict) else None
    if coords is None or len(coords) != rows.features.shape[0]:
        return None
    return coords[:, 1:].long()


def coarse_rows(rows: Rows, coords: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
    """(N,) row of the coarse voxel that contains each fine voxel, -1 where there is none. No host synchronization.

    Each axis may have a stride of its own, a power of 2: the ratio of ``grid``, the voxels along each axis of the grid
    of ``coords``, to the coarse grid. None: the coordinates reach the end of each axis, as those of MinkUNet do.
    """
    if rows.indices.shape[0] == 0:
        return torch.full_like(coords[:, 0], -1, dtype=torch.int64)
    fine, shape = coords.long(), torch.tensor(rows.spatial_shape, device=coords.device)
    # strided sparse convolution: coarse = fine // stride. The longest axis tells its stride best; an axis of few cells
    # tells it badly, so it takes that of the longest unless that is out of the question (Cylinder3D keeps the height).
    extent = fine[:, 1:].amax(0) + 1 if grid is None else torch.tensor(grid, device=coords.device)
    own = 2 ** torch.log2(extent / shape).round().clamp_min(0)
    longest = own[max(range(3), key=lambda axis: rows.spatial_shape[axis])]
    stride = torch.where((extent / longest - shape).abs() < 1, longest, own).long()
    target = torch.cat([fine[:, :1], fine[:, 1:] // stride], 1)
    keys, order = _key(rows.indices.long(), rows.spatial_shape).sort()
    wanted = _key(target, rows.spatial_shape)
    place = torch.searchsorted(keys, wanted).clamp_max_(keys.shape[0] - 1)
    inside = (target[:, 1:] < shape).all(1)
    return torch.where((keys[place] == wanted) & inside, order[place], -1)


def _key(coords: Tensor, shape: tuple) -> Tensor:
    batch, x, y, z = coords.unbind(1)
    return ((batch * shape[0] + x) * shape[1] + y) * shape[2] + z
