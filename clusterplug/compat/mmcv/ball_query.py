# SPDX-License-Identifier: Apache-2.0
"""The first points inside a ball, on the CPU; mmcv has a CUDA kernel only."""

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import blocks, for_cpu, square_distances
from clusterplug.compat.workaround import Workaround


def first_in_ball(centers: Tensor, points: Tensor, min_radius: float, max_radius: float, num_samples: int):
    """The first ``num_samples`` of ``points`` (N, 3), by index, in the ball around each of ``centers`` (M, 3).

    A point is inside if its distance is 0, or at least ``min_radius`` and less than ``max_radius``. A ball with fewer
    points repeats its first; an empty one has zeros.

    Returns:
        tuple[Tensor, Tensor]: (M, num_samples) int32 indices, (M,) int64 numbers of points inside.

    Example:
        >>> points = torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [2, 0, 0]])
        >>> indices, counts = first_in_ball(points[1:3], points, 0.0, 1.5, 3)
        >>> indices.tolist(), counts.tolist()
        ([[1, 3, 1], [0, 2, 3]], [2, 3])
    """
    # squared in single precision, as on CUDA
    low, high = (float(torch.tensor(radius, dtype=torch.float32).square()) for radius in (min_radius, max_radius))
    indices = torch.zeros(len(centers), num_samples, dtype=torch.int64)
    counts = torch.zeros(len(centers), dtype=torch.int64)
    for rows in blocks(len(centers), len(points)):
        distances = square_distances(centers[rows], points)
        inside = distances < high
        if low > 0:
            inside &= (distances >= low) | (distances == 0)
        row, column = inside.nonzero().unbind(1)  # in the order of rows, then of columns
        count = torch.bincount(row, minlength=len(inside))
        counts[rows] = count
        if len(row) == 0:
            continue
        start = count.cumsum(0) - count
        first = torch.where(count > 0, column[start.clamp_max(len(row) - 1)], 0)
        place = torch.arange(len(row)) - start[row]
        kept = place < num_samples
        block = first[:, None].repeat(1, num_samples)
        block[row[kept], place[kept]] = column[kept]
        indices[rows] = block
    return indices.int(), counts


def _check(name: str, x: Tensor, num_dims: int) -> None:
    if x.dim() != num_dims or x.shape[-1] != 3:
        raise ValueError(f'{name} of a ball query must have {num_dims} dimensions, the last of size 3, got {x.shape}')


def _forward(center_xyz, xyz, idx, min_radius, max_radius, nsample, **_):
    """Take the arguments of mmcv's ``ball_query_forward`` and fill in ``idx`` (B, M, nsample)."""
    _check('center_xyz', center_xyz, 3)
    _check('xyz', xyz, 3)
    for scene in range(len(xyz)):
        idx[scene] = first_in_ball(center_xyz[scene], xyz[scene], min_radius, max_radius, nsample)[0]


def _stack_forward(center_xyz, center_xyz_batch_cnt, xyz, xyz_batch_cnt, idx, max_radius, nsample):
    """Take the arguments of mmcv's ``stack_ball_query_forward``: scenes of different sizes one after the other."""
    _check('center_xyz', center_xyz, 2)
    _check('xyz', xyz, 2)
    sizes, point_sizes = center_xyz_batch_cnt.tolist(), xyz_batch_cnt.tolist()
    if len(sizes) != len(point_sizes) or sum(sizes) != len(center_xyz) or sum(point_sizes) != len(xyz):
        raise ValueError(
            f'batch counts must add up to {len(center_xyz)} centers and {len(xyz)} points, got {sizes}, {point_sizes}'
        )
    scenes = zip(center_xyz.split(sizes), xyz.split(point_sizes), idx.split(sizes), strict=True)
    for centers, points, out in scenes:
        found, counts = first_in_ball(centers, points, 0.0, max_radius, nsample)
        found[:, 0].masked_fill_(counts == 0, -1)  # mmcv's mark of an empty ball
        out.copy_(found)


def patch(module):
    """Replace both kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'ball_query_forward', _forward),
        for_cpu(module, 'stack_ball_query_forward', _stack_forward),
    ]


WORKAROUND = Workaround(
    name='ball_query',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv finds points in balls on the CPU',
)
