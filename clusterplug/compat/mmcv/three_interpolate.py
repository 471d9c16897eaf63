# SPDX-License-Identifier: Apache-2.0
"""Weighted sums of three features on the CPU, forward and backward; mmcv has CUDA kernels only."""

import torch

from clusterplug.compat.mmcv._cpu_kernel import check_indices, for_cpu
from clusterplug.compat.mmcv.group_points import gather, scatter
from clusterplug.compat.workaround import Workaround


def _forward(features, indices, weight, output, **_):
    """Take the arguments of mmcv's ``three_interpolate_forward`` and fill in ``output`` (B, C, N)."""
    check_indices('three_interpolate', indices, features.shape[2])
    neighbours = torch.empty_like(output)
    output.zero_()
    for k in range(3):  # one at a time: three times less memory than all at once
        gather(features, indices[..., k], neighbours)
        output.addcmul_(neighbours, weight[:, None, :, k].to(output.dtype))


def _backward(grad_out, indices, weight, grad_features, **_):
    """Take the arguments of mmcv's ``three_interpolate_backward`` and add to ``grad_features`` (B, C, M)."""
    for k in range(3):
        scatter(grad_out * weight[:, None, :, k].to(grad_out.dtype), indices[..., k], grad_features)


def patch(module):
    """Replace both kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'three_interpolate_forward', _forward),
        for_cpu(module, 'three_interpolate_backward', _backward),
    ]


WORKAROUND = Workaround(
    name='three_interpolate',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv interpolates points on the CPU',
)
