# SPDX-License-Identifier: Apache-2.0
"""KITTI evaluation with frames that hold no object: mmdet3d reads the first angle of every frame and raises."""

import numpy as np

from clusterplug.compat.workaround import Workaround


def fill_empty_frames(annotations: list[dict]) -> list[dict]:
    """Give each frame without objects one DontCare region of no size, which changes no figure.

    Args:
        annotations: one dict of arrays a frame, as in mmdet3d's KITTI evaluation.
    """
    region = dict(
        name=np.array(['DontCare']),
        truncated=np.array([-1.0]),
        occluded=np.array([-1]),
        alpha=np.array([-10.0]),
        bbox=np.zeros((1, 4)),
        dimensions=np.full((1, 3), -1.0),
        location=np.full((1, 3), -1000.0),
        rotation_y=np.array([-10.0]),
        score=np.array([0.0]),
    )
    return [frame if len(frame['name']) else {**frame, **region} for frame in annotations]


def patch(module):
    """Replace ``kitti_eval`` where ``KittiMetric`` calls it."""
    host = module.kitti_eval

    def kitti_eval(gt_annos, dt_annos, current_classes, eval_types=('bbox', 'bev', '3d')):
        return host(fill_empty_frames(gt_annos), dt_annos, current_classes, eval_types=list(eval_types))

    return [(module, 'kitti_eval', kitti_eval)]


WORKAROUND = Workaround(
    name='kitti_empty_frames',
    host='mmdet3d.evaluation.metrics.kitti_metric',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d evaluates frames without objects',
)
