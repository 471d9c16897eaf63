# SPDX-License-Identifier: Apache-2.0
"""Gathering the features of sampled points on the CPU, forward and backward; mmcv has CUDA kernels only."""

from clusterplug.compat.mmcv._cpu_kernel import check_indices, for_cpu
from clusterplug.compat.mmcv.group_points import gather, scatter
from clusterplug.compat.workaround import Workaround


def _forward(features, indices, output, **_):
    """Take the arguments of mmcv's ``gather_points_forward`` and fill in ``output`` (B, C, npoints)."""
    check_indices('gather_points', indices, features.shape[2])
    gather(features, indices, output)


def _backward(grad_out, indices, grad_features, **_):
    """Take the arguments of mmcv's ``gather_points_backward`` and add to ``grad_features`` (B, C, N)."""
    scatter(grad_out, indices, grad_features)


def patch(module):
    """Replace both kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'gather_points_forward', _forward),
        for_cpu(module, 'gather_points_backward', _backward),
    ]


WORKAROUND = Workaround(
    name='gather_points',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv gathers points on the CPU',
)
