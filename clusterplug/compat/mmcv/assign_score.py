# SPDX-License-Identifier: Apache-2.0
"""PAConv's assembly of kernels from neighbors on the CPU, forward and backward; mmcv has CUDA kernels only.

With neighbors ``j = idx[n, k]``, center ``i = idx[n, 0]`` and kernels m:
``out[o, n, k] = sum_m scores[n, k, m] * (points[j, m, o] - centers[i, m, o])``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import blocks, check_indices, for_cpu
from clusterplug.compat.workaround import Workaround


def _groups(points: Tensor, knn_idx: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Blocks of groups: scene, rows, center (n,), neighbors (n, K), and which (n, K, 1) of them exist."""
    _, num_points, num_kernels, width = points.shape
    _, num_groups, k = knn_idx.shape
    check_indices('the centers of assign_score_withk', knn_idx[..., :1], num_points)
    for scene in range(len(points)):
        for rows in blocks(num_groups, k * num_kernels * width):
            indices = knn_idx[scene, rows].long()
            exists = (indices >= 0) & (indices < num_points)
            yield scene, rows, indices[:, 0], torch.where(exists, indices, 0), exists[..., None]


def _forward(points, centers, scores, knn_idx, output, **_):
    """Take the arguments of mmcv's ``assign_score_withk_forward`` and fill in ``output`` (B, O, N1, K).

    Neighbors outside the points give 0. mmcv does not use its argument ``aggregate`` either.
    """
    for scene, rows, center, neighbours, exists in _groups(points, knn_idx):
        score = scores[scene, rows] * exists  # (n, K, M)
        kernels = points[scene][neighbours]  # (n, K, M, O)
        result = torch.matmul(score[:, :, None], kernels)[:, :, 0]
        result -= torch.matmul(score, centers[scene][center])
        output[scene, :, rows] = result.permute(2, 0, 1)


def _backward(grad_out, points, centers, scores, knn_idx, grad_points, grad_centers, grad_scores, **_):
    """Take the arguments of mmcv's ``assign_score_withk_backward`` and add to the three gradients."""
    for scene, rows, center, neighbours, exists in _groups(points, knn_idx):
        grad = grad_out[scene, :, rows].permute(1, 2, 0) * exists  # (n, K, O)
        score = scores[scene, rows]
        pairs = score[..., None] * grad[:, :, None]  # (n, K, M, O)
        grad_points[scene].index_add_(0, neighbours.flatten(), pairs.flatten(0, 1))
        grad_centers[scene].index_add_(0, center, -pairs.sum(1))
        offsets = points[scene][neighbours] - centers[scene][center][:, None]
        grad_scores[scene, rows] += torch.matmul(offsets, grad[..., None])[..., 0]


def patch(module):
    """Replace both kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'assign_score_withk_forward', _forward),
        for_cpu(module, 'assign_score_withk_backward', _backward),
    ]


WORKAROUND = Workaround(
    name='assign_score',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv assembles the kernels of PAConv on the CPU',
)
