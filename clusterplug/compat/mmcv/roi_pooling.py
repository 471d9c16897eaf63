# SPDX-License-Identifier: Apache-2.0
"""Pooling the points of proposals (PointRCNN, Part-A2) on the CPU; mmcv has CUDA kernels only."""

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import for_cpu
from clusterplug.compat.workaround import Workaround
from clusterplug.core.geometry import inside_boxes, local_coordinates

_PAIRS = 1 << 22  # of points and boxes at a time


def first_points(inside: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The first ``num_samples`` rows that are True in each column of ``inside`` (N, T), repeated in turn if fewer.

    Returns:
        tuple[Tensor, Tensor]: (T, num_samples) int64 rows, 0 in an empty column; (T,) int64 numbers.

    Example:
        >>> rows, counts = first_points(torch.tensor([[True, False], [False, False], [True, False]]), 3)
        >>> rows.tolist(), counts.tolist()
        ([[0, 2, 0], [0, 0, 0]], [2, 0])
    """
    counts = inside.sum(0)
    _column, row = inside.T.nonzero().unbind(1)
    start = counts.cumsum(0) - counts
    place = torch.arange(num_samples) % counts.clamp(1, num_samples)[:, None]
    if not len(row):
        return torch.zeros_like(place), counts
    found = row[(start[:, None] + place).clamp_max(len(row) - 1)]
    return torch.where(counts[:, None] > 0, found, 0), counts


def _roipoint(xyz, boxes3d, pts_feature, pooled_features, pooled_empty_flag, **_):
    """Take the arguments of mmcv's ``roipoint_pool3d_forward``: pooled_features (B, M, S, 3 + C)."""
    samples = pooled_features.shape[2]
    step = max(1, _PAIRS // max(1, xyz.shape[1]))
    for scene in range(len(xyz)):
        values = torch.cat([xyz[scene], pts_feature[scene]], 1)
        for start in range(0, boxes3d.shape[1], step):
            some = slice(start, start + step)
            rows, counts = first_points(inside_boxes(xyz[scene], boxes3d[scene, some]), samples)
            full = counts > 0
            pooled_features[scene, some][full] = values[rows[full]]
            pooled_empty_flag[scene, some] = (~full).int()


def _roiaware(rois, pts, pts_feature, argmax, pts_idx_of_voxels, pooled_features, pool_method, **_):
    """Take the arguments of mmcv's ``roiaware_pool3d_forward``: one cell grid a box, (N, X, Y, Z, ...)."""
    sizes = pts_idx_of_voxels.shape[1:4]
    limit = pts_idx_of_voxels.shape[4] - 1  # the first entry is the number of points
    for number, roi in enumerate(rois):
        members = inside_boxes(pts, roi[None])[:, 0].nonzero()[:, 0]
        if not len(members):
            argmax[number] = -1
            continue
        x, y, z = (axis[:, 0] for axis in local_coordinates(pts[members], roi[None]))
        steps = [roi[3] / sizes[0], roi[4] / sizes[1], roi[5] / sizes[2]]
        place = [(x + roi[3] / 2) / steps[0], (y + roi[4] / 2) / steps[1], z / steps[2]]
        place = [axis.int().clamp(0, size - 1).long() for axis, size in zip(place, sizes, strict=True)]
        cell = (place[0] * sizes[1] + place[1]) * sizes[2] + place[2]
        order = torch.argsort(cell, stable=True)
        cell, members = cell[order], members[order]
        counts = torch.bincount(cell, minlength=sizes[0] * sizes[1] * sizes[2])
        rank = torch.arange(len(cell)) - (counts.cumsum(0) - counts)[cell]
        kept = rank < limit
        cell, members, rank = cell[kept], members[kept], rank[kept]
        lists = pts_idx_of_voxels[number].view(-1, limit + 1)
        lists[:, 0] = counts.clamp_max(limit).int()
        lists[cell, rank + 1] = members.int()
        pool = _pool_max if pool_method == 0 else _pool_mean
        channels = pts_feature.shape[1]
        out, best = pooled_features[number].view(-1, channels), argmax[number].view(-1, channels)
        pool(pts_feature[members], members, cell, out, best)


def _pool_max(values: Tensor, members: Tensor, cell: Tensor, out: Tensor, best: Tensor) -> None:
    """Largest value of each cell and channel, and the point that has it: the first of equals."""
    index = cell[:, None].expand_as(values)
    top = torch.full_like(out, -torch.inf).scatter_reduce_(0, index, values, 'amax')
    winner = torch.where(values == top[cell], members[:, None], torch.iinfo(torch.int64).max)
    none = torch.iinfo(torch.int64).max
    first = torch.full(best.shape, none).scatter_reduce_(0, index, winner, 'amin')
    found = first < none
    out[found] = top[found]
    best.copy_(torch.where(found, first, -1))


def _pool_mean(values: Tensor, members: Tensor, cell: Tensor, out: Tensor, best: Tensor) -> None:
    counts = torch.bincount(cell, minlength=len(out)).clamp_min(1)
    out.copy_(torch.zeros_like(out).index_add_(0, cell, values) / counts[:, None])


def _roiaware_backward(pts_idx_of_voxels, argmax, grad_out, grad_in, pool_method, **_):
    """Take the arguments of mmcv's ``roiaware_pool3d_backward`` and add to ``grad_in`` (points, C)."""
    grad = grad_out.flatten(0, 3)
    if pool_method == 0:
        best = argmax.flatten(0, 3).long()
        grad_in.scatter_add_(0, best.clamp_min(0), torch.where(best >= 0, grad, 0))
        return
    lists = pts_idx_of_voxels.flatten(0, 3).long()
    counts = lists[:, 0]
    cell, slot = (torch.arange(lists.shape[1] - 1) < counts[:, None]).nonzero().unbind(1)
    grad_in.index_add_(0, lists[cell, slot + 1], grad[cell] / counts[cell, None])


def patch(module):
    """Replace the kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'roipoint_pool3d_forward', _roipoint),
        for_cpu(module, 'roiaware_pool3d_forward', _roiaware),
        for_cpu(module, 'roiaware_pool3d_backward', _roiaware_backward),
    ]


WORKAROUND = Workaround(
    name='roi_pooling',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv pools the points of proposals on the CPU',
)
