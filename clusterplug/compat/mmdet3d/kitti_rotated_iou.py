# SPDX-License-Identifier: Apache-2.0
"""KITTI evaluation without CUDA: mmdet3d computes the overlap of turned boxes with numba on CUDA alone.

Where CUDA is there, mmdet3d's own kernel runs.
"""

import numpy as np
import torch

from clusterplug.compat.rotated_overlap import rotated_overlap
from clusterplug.compat.workaround import Workaround


def overlap_by_criterion(boxes: np.ndarray, others: np.ndarray, criterion: int = -1) -> np.ndarray:
    """Overlap (N, M) of boxes (N, 5) and others (M, 5) in camera coordinates, whose angles turn clockwise.

    Args:
        boxes: center x and z, length, width, rotation.
        others: likewise.
        criterion: what to divide the common area by: -1 the union, 0 the boxes, 1 the others, 2 nothing.
    """
    turn = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    first, second = (torch.from_numpy(np.asarray(each, np.float64)) * turn for each in (boxes, others))
    common = rotated_overlap(first, second)
    areas, other_areas = first[:, 2:4].prod(1)[:, None], second[:, 2:4].prod(1)
    by = {-1: areas + other_areas - common, 0: areas, 1: other_areas, 2: torch.ones(())}[criterion]
    return (common / by).numpy()


def patch(module):
    """Replace the two callers of the CUDA kernel; each asks at every call whether CUDA is there."""
    host_bev, host_3d, finish = module.bev_box_overlap, module.d3_box_overlap, module.d3_box_overlap_kernel

    def bev_box_overlap(boxes, qboxes, criterion=-1):
        if torch.cuda.is_available():
            return host_bev(boxes, qboxes, criterion)
        return overlap_by_criterion(boxes, qboxes, criterion)

    def d3_box_overlap(boxes, qboxes, criterion=-1):
        if torch.cuda.is_available():
            return host_3d(boxes, qboxes, criterion)
        ground = [0, 2, 3, 5, 6]
        overlap = overlap_by_criterion(boxes[:, ground], qboxes[:, ground], 2)
        finish(boxes, qboxes, overlap, criterion)
        return overlap

    return [(module, 'bev_box_overlap', bev_box_overlap), (module, 'd3_box_overlap', d3_box_overlap)]


WORKAROUND = Workaround(
    name='kitti_rotated_iou',
    host='mmdet3d.evaluation.functional.kitti_utils.eval',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d evaluates KITTI without numba on CUDA',
)
