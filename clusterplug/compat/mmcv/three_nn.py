# SPDX-License-Identifier: Apache-2.0
"""The three nearest points on the CPU; mmcv has a CUDA kernel only."""

from clusterplug.compat.mmcv._cpu_kernel import for_cpu, nearest
from clusterplug.compat.workaround import Workaround


def _forward(target, source, dist2, idx, **_):
    """Take the arguments of mmcv's ``three_nn_forward``; fill in squared distances and indices, both (B, N, 3).

    The smaller index wins among equally distant points. With fewer than three sources the rest is index 0 at infinity.
    """
    if target.shape[-1] != 3 or source.shape[-1] != 3:
        raise ValueError(f'three_nn needs points (B, N, 3), got {tuple(target.shape)} and {tuple(source.shape)}')
    for scene in range(len(target)):
        distances, indices = nearest(target[scene], source[scene], 3, float('inf'))
        dist2[scene], idx[scene] = distances, indices


def patch(module):
    """Replace the kernel for tensors on the CPU."""
    return [for_cpu(module, 'three_nn_forward', _forward)]


WORKAROUND = Workaround(
    name='three_nn',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv finds nearest points on the CPU',
)
