# SPDX-License-Identifier: Apache-2.0
"""Points in turned boxes on the CPU; mmcv asks for the current CUDA device and has CUDA kernels only."""

import torch

from clusterplug.compat.mmcv._cpu_kernel import for_cpu
from clusterplug.compat.workaround import Workaround
from clusterplug.core.geometry import inside_boxes


def _part_forward(boxes, points, box_idxs_of_pts, **_):
    """Take the arguments of mmcv's kernel: the first box (B, M) of each point, which stays -1 for none."""
    for scene in range(len(points)):
        inside = inside_boxes(points[scene], boxes[scene])
        if inside.shape[1]:
            first = inside.int().argmax(1)
            box_idxs_of_pts[scene] = torch.where(inside.any(1), first, -1).int()


def _all_forward(boxes, points, box_idxs_of_pts, **_):
    """Take the arguments of mmcv's kernel: 1 where a point is in a box (B, M, T)."""
    for scene in range(len(points)):
        box_idxs_of_pts[scene] = inside_boxes(points[scene], boxes[scene]).int()


class _Devices:
    """``torch.cuda`` where nothing is current without CUDA: -1, which is also the device number of a CPU tensor."""

    @staticmethod
    def current_device() -> int:
        return torch.cuda.current_device() if torch.cuda.is_available() else -1

    @staticmethod
    def set_device(device: int) -> None:
        if device >= 0:
            torch.cuda.set_device(device)


class _Torch:
    cuda = _Devices

    def __getattr__(self, name):
        return getattr(torch, name)


def patch(module):
    """Replace both kernels for tensors on the CPU, and what the wrappers ask of CUDA."""
    kernels = module.ext_module
    return [
        (module, 'torch', _Torch()),
        for_cpu(kernels, 'points_in_boxes_part_forward', _part_forward),
        for_cpu(kernels, 'points_in_boxes_all_forward', _all_forward),
    ]


WORKAROUND = Workaround(
    name='points_in_boxes',
    host='mmcv.ops.points_in_boxes',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv finds points in boxes on the CPU under the same name',
)
