# SPDX-License-Identifier: Apache-2.0
"""Overlap and suppression of turned boxes seen from above, on the CPU; mmcv's ``iou3d`` has CUDA kernels only."""

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import for_cpu
from clusterplug.compat.rotated_overlap import rotated_iou, rotated_overlap
from clusterplug.compat.workaround import Workaround

_GROUND = [0, 1, 3, 4, 6]  # x, y, sizes along them, angle, of x, y, z, dx, dy, dz, angle


def suppress(boxes: Tensor, threshold: float) -> Tensor:
    """Rows of ``boxes`` (N, 5), best first, that overlap no better kept one by an IoU above ``threshold``.

    Example:
        >>> suppress(torch.tensor([[0.0, 0, 4, 2, 0], [0.5, 0, 4, 2, 0], [9, 9, 4, 2, 0]]), 0.5).tolist()
        [0, 2]
    """
    kept, left = [], torch.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[rotated_iou(boxes[best][None], boxes[left])[0] <= threshold]
    return torch.stack(kept) if kept else left


def _overlap(boxes_a, boxes_b, ans_overlap, **_):
    """Take the arguments of mmcv's ``iou3d_boxes_overlap_bev_forward``."""
    ans_overlap.copy_(rotated_overlap(boxes_a[:, _GROUND], boxes_b[:, _GROUND]))


def _nms(boxes, keep, num_out, nms_overlap_thresh):
    """Take the arguments of mmcv's ``iou3d_nms3d_forward``: boxes (N, 7), best first."""
    rows = suppress(boxes[:, _GROUND], nms_overlap_thresh)
    keep[: len(rows)] = rows
    num_out.fill_(len(rows))


def _nms_normal(boxes, keep, num_out, nms_overlap_thresh):
    """The same with all angles set to 0."""
    upright = boxes.clone()
    upright[:, 6] = 0
    _nms(upright, keep, num_out, nms_overlap_thresh)


def patch(module):
    """Replace the three kernels for tensors on the CPU."""
    return [
        for_cpu(module, 'iou3d_boxes_overlap_bev_forward', _overlap),
        for_cpu(module, 'iou3d_nms3d_forward', _nms),
        for_cpu(module, 'iou3d_nms3d_normal_forward', _nms_normal),
    ]


WORKAROUND = Workaround(
    name='iou3d',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv compares turned boxes on the CPU',
)
