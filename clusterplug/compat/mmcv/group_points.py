# SPDX-License-Identifier: Apache-2.0
"""Gathering the features of groups of points on the CPU, forward and backward; mmcv has CUDA kernels only."""

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import check_indices, for_cpu
from clusterplug.compat.workaround import Workaround


def _expanded(indices: Tensor, num_channels: int) -> Tensor:
    flat = indices.flatten(1).long()
    return flat[:, None].expand(-1, num_channels, -1)


def gather(features: Tensor, indices: Tensor, out: Tensor) -> None:
    """``out[b, c, i] = features[b, c, indices[b, i]]``: features (B, C, N), indices (B, ...), out (B, C, ...)."""
    torch.gather(features, 2, _expanded(indices, features.shape[1]), out=out.view(*features.shape[:2], -1))


def scatter(grad: Tensor, indices: Tensor, grad_features: Tensor) -> None:
    """Add ``grad[b, c, i]`` to ``grad_features[b, c, indices[b, i]]``, the transpose of :func:`gather`."""
    grad_features.scatter_add_(2, _expanded(indices, grad.shape[1]), grad.flatten(2))


def _forward(features, indices, output, **_):
    """Take the arguments of mmcv's ``group_points_forward`` and fill in ``output`` (B, C, npoints, nsample)."""
    check_indices('group_points', indices, features.shape[2])
    gather(features, indices, output)


def _backward(grad_out, indices, grad_features, **_):
    """Take the arguments of mmcv's ``group_points_backward`` and add to ``grad_features`` (B, C, N)."""
    scatter(grad_out, indices, grad_features)


def _stacked_rows(indices: Tensor, indices_batch_cnt: Tensor, features_batch_cnt: Tensor) -> Tensor:
    """(M * nsample,) rows of all features for indices (M, nsample) within each scene."""
    sizes, feature_sizes = indices_batch_cnt.tolist(), features_batch_cnt.tolist()
    if len(sizes) != len(feature_sizes) or sum(sizes) != len(indices):
        raise ValueError(
            f'batch counts of group_points must add up to {len(indices)} groups in as many scenes, '
            f'got {sizes} groups and {feature_sizes} features'
        )
    for part, size in zip(indices.split(sizes), feature_sizes, strict=True):
        check_indices('group_points', part, size)
    starts = (features_batch_cnt.cumsum(0) - features_batch_cnt).long()
    return (indices + starts.repeat_interleave(indices_batch_cnt.long())[:, None]).flatten()


def _stack_forward(features, features_batch_cnt, indices, indices_batch_cnt, output, **_):
    """Take the arguments of mmcv's ``stack_group_points_forward`` and fill in ``output`` (M, C, nsample)."""
    rows = _stacked_rows(indices, indices_batch_cnt, features_batch_cnt)
    output.copy_(features[rows].view(*indices.shape, features.shape[1]).transpose(1, 2))


def _stack_backward(grad_out, indices, indices_batch_cnt, features_batch_cnt, grad_features, **_):
    """Take the arguments of mmcv's ``stack_group_points_backward`` and add to ``grad_features`` (N, C)."""
    rows = _stacked_rows(indices, indices_batch_cnt, features_batch_cnt)
    grad_features.index_add_(0, rows, grad_out.transpose(1, 2).reshape(-1, grad_out.shape[1]))


def patch(module):
    """Replace the four kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'group_points_forward', _forward),
        for_cpu(module, 'group_points_backward', _backward),
        for_cpu(module, 'stack_group_points_forward', _stack_forward),
        for_cpu(module, 'stack_group_points_backward', _stack_backward),
    ]


WORKAROUND = Workaround(
    name='group_points',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv groups points on the CPU',
)
