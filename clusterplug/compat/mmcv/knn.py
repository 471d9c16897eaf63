# SPDX-License-Identifier: Apache-2.0
"""The k nearest points on the CPU; mmcv asks for the current CUDA device, and has a CUDA kernel only."""

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import nearest
from clusterplug.compat.workaround import Workaround

_FAR = 1e10  # mmcv's kernel takes no point as far as that


def _as_kernel_reads(points: Tensor) -> Tensor:
    """(B, N, 3) numbers that mmcv's kernel takes for the coordinates of ``points`` (B, N, C).

    Its kernel knows three coordinates only: of wider rows it reads the first 3 B N numbers as they lie in memory.
    DGCNN asks for neighbors of 64 features that way. The published weights were trained like this, and a model must
    predict the same on both devices, so the same numbers are read here.
    """
    scenes, size, width = points.shape
    if width < 3:
        raise ValueError(f'knn needs points with at least three coordinates, got {tuple(points.shape)}')
    return points.reshape(-1)[: 3 * scenes * size].view(scenes, size, 3)


def k_nearest(k: int, points: Tensor, centers: Tensor) -> Tensor:
    """Indices (B, k, M) int32 of the k nearest of ``points`` (B, N, 3) to each of ``centers`` (B, M, 3).

    Nearest first; among equally distant points the smaller index first, where mmcv's heap has no order of its own.
    With fewer than k points the rest is index 0.

    Example:
        >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
        >>> k_nearest(2, points, points)[0].T.tolist()
        [[0, 1], [1, 0], [2, 1]]
    """
    points, centers = _as_kernel_reads(points), _as_kernel_reads(centers)
    scenes = zip(centers, points, strict=True)
    return torch.stack([nearest(center, point, k, _FAR)[1].T for center, point in scenes])


def patch(module):
    """Replace ``KNN.forward`` for tensors on the CPU."""
    host = module.KNN.forward

    def forward(ctx, k, xyz, center_xyz=None, transposed=False):
        if xyz.device.type != 'cpu':
            return host(ctx, k, xyz, center_xyz, transposed)
        if not 0 < k < 100:
            raise ValueError(f'k of knn must be from 1 to 99, got {k}')
        center_xyz = xyz if center_xyz is None else center_xyz
        if transposed:
            xyz, center_xyz = xyz.transpose(2, 1), center_xyz.transpose(2, 1)
        indices = k_nearest(k, xyz.detach().contiguous(), center_xyz.detach().contiguous()).contiguous()
        ctx.mark_non_differentiable(indices)
        return indices

    return [(module.KNN, 'forward', staticmethod(forward))]


WORKAROUND = Workaround(
    name='knn',
    host='mmcv.ops.knn',
    patch=patch,
    thread='open-mmlab/mmcv#1354',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv finds nearest points on the CPU, in as many dimensions as they have',
)
