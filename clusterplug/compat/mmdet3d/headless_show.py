# SPDX-License-Identifier: Apache-2.0
"""``--show-dir`` without a display: mmdet3d draws segmentation with an Open3D window and saves nothing without one.

Segmentation results (``--task lidar_seg``) are drawn from above, truth on the left when it is asked for, and written
as ``<sequence>_<scan>.png``. With a display and ``--show`` mmdet3d's own window opens as before.
"""

import logging
import os
import os.path as osp

import numpy as np

from clusterplug.compat.workaround import Workaround
from clusterplug.visualization.birds_eye import birds_eye


def _panels(points, data_sample, meta: dict, draw_gt: bool, draw_pred: bool) -> np.ndarray | None:
    """The pictures of truth and prediction side by side, (H, W, 3) RGB; None when there is nothing to draw."""
    palette = np.asarray(meta['palette'], dtype=np.uint8)
    truth = data_sample.gt_pts_seg.get('pts_semantic_mask') if 'gt_pts_seg' in data_sample else None
    prediction = data_sample.pred_pts_seg.get('pts_semantic_mask') if 'pred_pts_seg' in data_sample else None
    labels = [mask for mask, wanted in ((truth, draw_gt), (prediction, draw_pred)) if wanted and mask is not None]
    if not labels:
        return None
    points, labels = np.asarray(points), [np.asarray(mask.cpu() if hasattr(mask, 'cpu') else mask) for mask in labels]
    keep = np.ones(len(points), dtype=bool)
    if truth is not None and meta.get('ignore_index') is not None:
        keep = np.asarray(truth.cpu() if hasattr(truth, 'cpu') else truth) != meta['ignore_index']
    pictures = [birds_eye(points[keep], palette[mask[keep]]) for mask in labels]
    return np.concatenate(pictures, axis=1)


def _file_name(path: str, lidar_path: str) -> str:
    """Scans of different sequences have the same name: put the sequence in front of it."""
    folder, name = osp.split(path)
    parts = osp.normpath(lidar_path).split(os.sep)
    return osp.join(folder, f'{parts[-3]}_{name}') if len(parts) > 2 and parts[-2] == 'velodyne' else path


def patch(module):
    """Wrap ``Det3DLocalVisualizer.add_datasample``; other tasks and real windows are left to mmdet3d."""
    import mmcv

    host_add = module.Det3DLocalVisualizer.add_datasample

    def add_datasample(
        self, name, data_input, data_sample=None, draw_gt=True, draw_pred=True, show=False, *args,
        o3d_save_path=None, vis_task='mono_det', step=0, **kwargs,
    ):  # fmt: skip
        window = show and os.environ.get('DISPLAY')
        if vis_task != 'lidar_seg' or data_sample is None or window:
            return host_add(
                self, name, data_input, data_sample, draw_gt, draw_pred, show, *args,
                o3d_save_path=o3d_save_path, vis_task=vis_task, step=step, **kwargs,
            )  # fmt: skip
        if show:
            module.print_log('There is no display: --show opens no window', 'current', logging.WARNING)
        picture = _panels(data_input['points'], data_sample, self.dataset_meta, draw_gt, draw_pred)
        if picture is None:
            return
        if o3d_save_path is not None:
            mmcv.imwrite(picture[..., ::-1], _file_name(o3d_save_path, data_sample.metainfo.get('lidar_path', '')))
        else:
            self.add_image(name, picture, step)

    return [(module.Det3DLocalVisualizer, 'add_datasample', module.master_only(add_datasample))]


WORKAROUND = Workaround(
    name='headless_show',
    host='mmdet3d.visualization.local_visualizer',
    patch=patch,
    thread='open-mmlab/mmdetection3d#2475, #2857',
    noted='2026-11, mmdet3d 1.4.0 with open3d 0.19',
    until='mmdet3d draws without a window',
)
