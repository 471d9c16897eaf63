# SPDX-License-Identifier: Apache-2.0
"""Sum, mean or maximum of the points in each voxel on the CPU, forward and backward; mmcv has CUDA kernels only."""

import math

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import for_cpu
from clusterplug.compat.workaround import Workaround

_REDUCTIONS = ('sum', 'mean', 'max')


def occupied_voxels(coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different rows of ``coordinates`` (N, D) in lexicographic order; rows with a negative number are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Voxels (M, D), the row of each point's voxel (N,) int32 or -1, number of points
        in each voxel (M,) int32.

    Example:
        >>> voxels, rows, counts = occupied_voxels(torch.tensor([[2, 0], [1, 5], [-1, 3], [2, 0]]))
        >>> voxels.tolist(), rows.tolist(), counts.tolist()
        ([[1, 5], [2, 0]], [1, 0, -1, 1], [1, 2])
    """
    if coordinates.numel() == 0:
        empty = coordinates.new_zeros(len(coordinates), dtype=torch.int32)
        return coordinates[:0], empty - 1, empty[:0]
    sizes = [int(size) + 1 for size in coordinates.amax(0).clamp_min(0)]
    if math.prod(sizes) >= 1 << 62:
        raise ValueError(f'voxel coordinates must span fewer than 2^62 voxels, got a grid of {sizes}')
    keys = torch.zeros(len(coordinates), dtype=torch.int64)
    for axis, size in enumerate(sizes):
        keys = keys * size + coordinates[:, axis]
    keys = torch.where((coordinates < 0).any(1), -1, keys)
    keys, rows, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    if keys[0] < 0:
        keys, rows, counts = keys[1:], rows - 1, counts[1:]
    columns = []
    for size in reversed(sizes):
        columns.append(keys % size)
        keys = keys // size
    return torch.stack(columns[::-1], 1).to(coordinates.dtype), rows.int(), counts.int()


def _with_spare(rows: Tensor, num_voxels: int) -> Tensor:
    """Rows (N,) int64 in which points outside go to a spare voxel behind the last."""
    return torch.where(rows < 0, num_voxels, rows).long()


def _forward(feats: Tensor, coors: Tensor, reduce_type: str) -> list[Tensor]:
    """Take the arguments of mmcv's ``dynamic_point_to_voxel_forward``; features, voxels, rows and counts."""
    if reduce_type not in _REDUCTIONS:
        raise ValueError(f'the reduction of points to voxels must be one of {_REDUCTIONS}, got {reduce_type!r}')
    if feats.dim() != 2 or coors.dim() != 2 or len(feats) != len(coors):
        raise ValueError(
            f'features (N, C) and coordinates (N, D) must have the same N, got {tuple(feats.shape)}, '
            f'{tuple(coors.shape)}'
        )
    voxels, rows, counts = occupied_voxels(coors)
    target = _with_spare(rows, len(voxels))
    if reduce_type == 'max':
        # NaN is no maximum on CUDA
        values = torch.where(feats.isnan(), -torch.inf, feats)
        result = feats.new_full((len(voxels) + 1, feats.shape[1]), -torch.inf)
        result.scatter_reduce_(0, target[:, None].expand_as(values), values, 'amax')
    else:
        result = feats.new_zeros(len(voxels) + 1, feats.shape[1]).index_add_(0, target, feats)
    result = result[:-1]
    if reduce_type == 'mean':
        result = result / counts[:, None].to(result.dtype)
    return [result, voxels, rows, counts]


def _backward(grad_feats, grad_voxels, feats, voxel_feats, rows, counts, reduce_type):
    """Take the arguments of mmcv's ``dynamic_point_to_voxel_backward`` and fill in ``grad_feats`` (N, C).

    The first of several points with the maximum gets its gradient.
    """
    grad_feats.zero_()
    if len(feats) == 0 or len(voxel_feats) == 0:
        return
    inside = (rows >= 0)[:, None]
    row = rows.clamp_min(0).long()
    if reduce_type == 'mean':
        grad_voxels = grad_voxels / counts[:, None].to(grad_voxels.dtype)
    if reduce_type == 'max':
        number = torch.arange(len(feats), dtype=torch.int32)[:, None]
        number = torch.where((feats == voxel_feats[row]) & inside, number, len(feats))
        first = torch.full(voxel_feats.shape, len(feats), dtype=torch.int32)
        first.scatter_reduce_(0, row[:, None].expand_as(number), number, 'amin')
        inside = (number == first[row]) & (number < len(feats))
    grad_feats.copy_(torch.where(inside, grad_voxels[row], 0))


def patch(module):
    """Replace both kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'dynamic_point_to_voxel_forward', _forward),
        for_cpu(module, 'dynamic_point_to_voxel_backward', _backward),
    ]


WORKAROUND = Workaround(
    name='dynamic_scatter',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv reduces points to voxels on the CPU',
)
