# SPDX-License-Identifier: Apache-2.0
"""mmdet3d's KittiMetric on a CPU: its figures, and why it needs help."""

import math
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from _kitti_frames import EMPTY, scene

from clusterplug import compat
from clusterplug.compat.mmdet3d import kitti_empty_frames, kitti_rotated_iou


def kitti_infos(path, frames):
    camera = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    velodyne = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    entries = []
    for frame in frames:
        instances = [
            dict(
                bbox_label=0 if frame['name'][i] == 'Car' else -1, truncated=0.0, occluded=0, score=0.0,
                alpha=float(frame['alpha'][i]), bbox=frame['bbox'][i].tolist(),
                bbox_3d=[*frame['location'][i], *frame['dimensions'][i], float(frame['rotation_y'][i])],
            )
            for i in range(len(frame['name']))
        ]  # fmt: skip
        image = dict(cam2img=camera.tolist(), lidar2cam=velodyne.tolist(), height=360, width=1200)
        entries.append(dict(instances=instances, images=dict(CAM2=image), sample_idx=len(entries)))
    info = dict(metainfo=dict(categories={'Car': 0, 'DontCare': -1}), data_list=entries)
    path.write_bytes(pickle.dumps(info))


@pytest.mark.slow
def test_kitti_metric_of_mmdet3d(tmp_path):
    """Its figures for cars seen by a camera, with a frame without objects before them."""
    from mmdet3d.registry import METRICS
    from mmdet3d.structures import LiDARInstance3DBoxes

    compat.apply_all()
    count = 45
    rng = np.random.default_rng(0)
    forward, left = np.repeat([8.0, 16, 24], 15), np.tile(np.linspace(-5, 5, 15), 3)
    yaw = rng.uniform(-3, 3, count)
    boxes = np.stack([forward, left, np.full(count, -1.6), np.full(count, 1.0), np.full(count, 0.3),
                      np.full(count, 1.5), yaw], 1)  # fmt: skip
    lidar = LiDARInstance3DBoxes(torch.tensor(boxes, dtype=torch.float32))
    truth = scene(count)
    truth['location'] = np.stack([-left, np.full(count, 1.6), forward], 1)
    truth['dimensions'] = np.tile([1.0, 1.5, 0.3], (count, 1))
    truth['rotation_y'] = -yaw - math.pi / 2
    kitti_infos(tmp_path / 'infos.pkl', [EMPTY, truth])

    def run(found, scores):
        metric = METRICS.build(dict(type='KittiMetric', ann_file=str(tmp_path / 'infos.pkl'), metric='bbox'))
        metric.dataset_meta = dict(classes=['Car'])
        predictions = [LiDARInstance3DBoxes(torch.zeros(0, 7)), found]
        samples = [
            dict(
                pred_instances_3d=dict(
                    bboxes_3d=p, scores_3d=scores[: len(p)], labels_3d=torch.zeros(len(p), dtype=torch.int64)
                ),
                pred_instances=dict(), sample_idx=index,
            )
            for index, p in enumerate(predictions)
        ]  # fmt: skip
        metric.process({}, samples)
        return metric.evaluate(2)

    scores = torch.linspace(0.9, 0.1, count)
    result = run(lidar, scores)
    for kind in ('3D', 'BEV'):
        for recall in ('AP11', 'AP40'):
            assert result[f'Kitti metric/pred_instances_3d/KITTI/Car_{kind}_{recall}_easy_strict'] == pytest.approx(
                100, abs=1e-3
            )
    moved = lidar.tensor.clone()
    moved[:, 2] += 0.4  # (1.5 - 0.4) / (1.5 + 0.4) = 0.58 of the volume
    result = run(LiDARInstance3DBoxes(moved), scores)
    assert result['Kitti metric/pred_instances_3d/KITTI/Car_3D_AP40_easy_strict'] == 0
    assert result['Kitti metric/pred_instances_3d/KITTI/Car_3D_AP40_easy_loose'] == pytest.approx(100, abs=1e-3)
    assert result['Kitti metric/pred_instances_3d/KITTI/Car_BEV_AP40_easy_strict'] == pytest.approx(100, abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA is there')
def test_needed_because_mmdet3d_asks_for_cuda_and_for_objects():
    from mmdet3d.evaluation import metrics
    from mmdet3d.evaluation.functional.kitti_utils import eval as host

    compat.apply_all()
    kitti_rotated_iou.WORKAROUND.remove()
    kitti_empty_frames.WORKAROUND.remove()
    try:
        with pytest.raises(Exception, match='CUDA'):
            host.bev_box_overlap(np.zeros((1, 5)), np.zeros((1, 5)))
        with pytest.raises(IndexError):
            metrics.kitti_metric.kitti_eval([EMPTY], [scene()], ['Car'], eval_types=['bbox'])
    finally:
        compat.apply_all()
